# Two commands for a newcomer: make demo, make test. Each sets up, builds and runs what it says, alone, on a fresh Debian 12.
PRESET ?= release
BUILD  := build/$(PRESET)

.PHONY: help setup configure build demo test bench asan tsan format clean

help:
	@echo 'make demo    set up, build, and run the main job end to end'
	@echo 'make test    set up, build, and run every test'
	@echo 'make bench   build and run the benchmarks (ROWS=kernels/ for some of them)'
	@echo 'make asan    the tests under AddressSanitizer and UBSan;  make tsan: under ThreadSanitizer'
	@echo 'make format  clang-format over the tree;  make clean: remove build/'

setup:
	@scripts/setup.sh

configure: setup
	@[ -f $(BUILD)/build.ninja ] || cmake --preset $(PRESET) >$(if $(VERBOSE),/dev/stdout,/dev/null)

build: configure
	@cmake --build --preset $(PRESET)

demo: configure
	@cmake --build --preset $(PRESET) --target perigee
	@mkdir -p build/demo && scripts/demo_prose.sh >build/demo/prose.txt
	@$(BUILD)/cluster/perigee demo --prose build/demo/prose.txt --report build/demo/report.json

test: build
	@scripts/setup.sh ceph || echo 'make: no Ceph here; the tests that need one are skipped'
	@ctest --test-dir $(BUILD) --output-on-failure -j2

bench: configure
	@cmake --build --preset $(PRESET) --target crc32c_bench transfer_bench store_bench collective_bench attention_bench streaming_bench decode_bench gateway_replay remote_bench ssd_bench index_bench merge_reports
	@scripts/bench.sh $(BUILD) '$(ROWS)'

asan tsan:
	@$(MAKE) --no-print-directory test PRESET=$@

format:
	@git ls-files -z '*.h' '*.cc' | xargs -0 clang-format -i

clean:
	@rm -rf build

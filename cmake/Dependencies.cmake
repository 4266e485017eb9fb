# Every outside library, found once. Debian's packages are listed in scripts/setup.sh.
find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)
find_package(OpenSSL REQUIRED)
find_package(absl REQUIRED)
find_package(spdlog REQUIRED)
find_package(nlohmann_json REQUIRED)

pkg_check_modules(ucx REQUIRED IMPORTED_TARGET ucx)
pkg_check_modules(grpc REQUIRED IMPORTED_TARGET grpc++)
pkg_check_modules(protobuf REQUIRED IMPORTED_TARGET protobuf)
pkg_check_modules(rocksdb REQUIRED IMPORTED_TARGET rocksdb)
pkg_check_modules(uring REQUIRED IMPORTED_TARGET liburing)
pkg_check_modules(pcre2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(sentencepiece REQUIRED IMPORTED_TARGET sentencepiece)
pkg_check_modules(icu REQUIRED IMPORTED_TARGET icu-uc)
# With the definitions that Debian's library was built with: its structures depend on them.
pkg_check_modules(httplib REQUIRED IMPORTED_TARGET cpp-httplib)
pkg_check_modules(prometheus REQUIRED IMPORTED_TARGET prometheus-cpp-core)
find_package(hwy REQUIRED)
find_program(PROTOC protoc REQUIRED)
find_program(GRPC_CPP_PLUGIN grpc_cpp_plugin REQUIRED)

# Debian's dnnl and isa-l ship no usable CMake package (dnnl's wants OpenCL).
function(perigee_import_library target header library)
  string(TOUPPER ${library} upper)
  find_path(${upper}_INCLUDE_DIR ${header} REQUIRED)
  find_library(${upper}_LIBRARY ${library} REQUIRED)
  add_library(${target} INTERFACE IMPORTED)
  target_include_directories(${target} INTERFACE ${${upper}_INCLUDE_DIR})
  target_link_libraries(${target} INTERFACE ${${upper}_LIBRARY})
endfunction()
perigee_import_library(perigee::dnnl oneapi/dnnl/dnnl.hpp dnnl)
perigee_import_library(perigee::isal isa-l/crc.h isal)

# Ceph's client is an extra: used where librados' C++ headers are found, left out where they are not.
find_path(RADOS_INCLUDE_DIR rados/librados.hpp)
find_library(RADOS_LIBRARY rados)

# CUDA is an extra: used where nvcc is found, silently left out where it is not.
include(CheckLanguage)
check_language(CUDA)
if(CMAKE_CUDA_COMPILER)
  set(CMAKE_CUDA_STANDARD 20)
  set(PERIGEE_HAVE_CUDA ON)
else()
  set(PERIGEE_HAVE_CUDA OFF)
endif()
# Device memory and NCCL in transport/ need the toolkit's headers and its static runtime, no compiler and no GPU. What is linked
# leaves no trace at run time: the static runtime opens the driver when it is first used, and NCCL is opened likewise.
find_package(CUDAToolkit QUIET)
if(TARGET CUDA::cudart_static)
  find_path(NCCL_INCLUDE_DIR nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
  find_library(NCCL_LIBRARY nccl HINTS ${CUDAToolkit_LIBRARY_DIR})
endif()

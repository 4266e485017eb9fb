// Runs a libFuzzer target without libFuzzer: every seed, every truncation of small seeds, then mutated seeds in a fixed
// order.
//
//   driver SEED_FOLDER [SECONDS]      the same inputs in the same order every time; the time only decides where it
//   stops driver FILE                       one input, to look into a failure
//
// On a crash the input is left as crash-input in the current folder.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Input = std::vector<uint8_t>;
const Input* current = nullptr;

void SaveAndDie(int signal_number) {
  const int fd = ::open("crash-input", O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (fd >= 0 && current != nullptr && ::write(fd, current->data(), current->size()) < 0) ::_exit(3);
  std::signal(signal_number, SIG_DFL);
  std::raise(signal_number);
}

void RunOne(const Input& input) {
  current = &input;
  const Input exact(input);  // no spare capacity, so that sanitizers see a read past the end
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
}

uint64_t Next(uint64_t& state) {  // splitmix64
  uint64_t x = state += 0x9E3779B97F4A7C15ULL;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}

void Mutate(Input& input, const std::vector<Input>& seeds, uint64_t& state) {
  static const char* const kTokens[] = {
      "0", "-1", "18446744073709551615", "1e309", "null", "true", "[", "{", "\"\"", "}", "]", "\\u0000", "\xFF"};
  const uint64_t rounds = 1 + Next(state) % 4;
  for (uint64_t r = 0; r < rounds; ++r) {
    const size_t at = input.empty() ? 0 : Next(state) % input.size();
    const auto where = input.begin() + static_cast<ptrdiff_t>(at);
    const auto span_end = [&] {
      return where + static_cast<ptrdiff_t>(std::min<size_t>(input.size() - at, 1 + Next(state) % 16));
    };
    switch (Next(state) % 6) {
      case 0:
        if (!input.empty()) *where ^= static_cast<uint8_t>(1U << (Next(state) % 8));
        break;
      case 1:
        if (!input.empty()) *where = static_cast<uint8_t>(Next(state));
        break;
      case 2:
        if (!input.empty()) input.erase(where, span_end());
        break;
      case 3: {
        const std::string token = kTokens[Next(state) % std::size(kTokens)];
        input.insert(where, token.begin(), token.end());
        break;
      }
      case 4:
        if (!input.empty()) {
          const Input copy(where, span_end());
          input.insert(input.begin() + static_cast<ptrdiff_t>(Next(state) % input.size()), copy.begin(), copy.end());
        }
        break;
      default: {  // the head of this one, the tail of another
        const Input& other = seeds[Next(state) % seeds.size()];
        input.resize(at);
        if (!other.empty())
          input.insert(input.end(), other.begin() + static_cast<ptrdiff_t>(Next(state) % other.size()), other.end());
      }
    }
  }
}

Input ReadInput(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return Input((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s SEED_FOLDER [SECONDS] | FILE\n", argv[0]);
    return 2;
  }
  std::signal(SIGABRT, SaveAndDie);
  std::signal(SIGSEGV, SaveAndDie);
  if (!std::filesystem::is_directory(argv[1])) {
    RunOne(ReadInput(argv[1]));
    return 0;
  }
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(argv[1])) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  std::vector<Input> seeds;
  for (const auto& path : paths) seeds.push_back(ReadInput(path));
  if (seeds.empty()) {
    std::fprintf(stderr, "no seeds in %s\n", argv[1]);
    return 2;
  }
  const double seconds = argc > 2 ? std::atof(argv[2]) : 2.0;
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  uint64_t runs = 0;
  for (const Input& seed : seeds) RunOne(seed), ++runs;
  for (const Input& seed : seeds) {
    for (size_t n = 0; seed.size() <= 4096 && n < seed.size() && elapsed() < seconds / 2; ++n, ++runs) {
      RunOne(Input(seed.begin(), seed.begin() + static_cast<ptrdiff_t>(n)));
    }
  }
  uint64_t state = 1;
  for (; elapsed() < seconds; ++runs) {
    Input input = seeds[Next(state) % seeds.size()];
    Mutate(input, seeds, state);
    RunOne(input);
  }
  std::printf("%llu inputs in %.1f s\n", static_cast<unsigned long long>(runs), elapsed());
  return 0;
}

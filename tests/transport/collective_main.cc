// One rank of collective_test.
//   transport_rank RANK SIZE PORT GROUP TRANSPORTS STEP...
// Rank 0 prints "port N" when it listens (PORT 0 takes a free one). Everyone then prints "joined" or "fail CODE
// MESSAGE" for the rendezvous, and for every step one line: "ok CRC" of the result's bits, or "fail CODE MESSAGE".
// Results are checked here against what all ranks' inputs, known to all, add up to; a wrong one is "wrong ...".
//   deadline:MS          for the steps after it (and for the rendezvous, when it comes first); 30000 at first
//   sum:COUNT            AllReduceSum
//   gather:BYTES         AllGather, every rank's share
//   broadcast:BYTES:ROOT, string:BYTES:ROOT
//   barrier              prints "entering NS" before, and "ok NS" after: a clock that all processes share
//   loop:COUNT           AllReduceSum until it fails; prints "looping" after the first
//   await                reads one line from standard input, prints "ok 0"
#include <time.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "base/bytes.h"
#include "base/crc32c.h"
#include "transport/collective/ucx_collective.h"

namespace perigee::transport {
namespace {

void Print(absl::string_view line) {
  std::printf("%.*s\n", static_cast<int>(line.size()), line.data());
  std::fflush(stdout);
}

void PrintFailure(const absl::Status& status) {
  Print(absl::StrCat("fail ", absl::StatusCodeToString(status.code()), " ", status.message()));
}

int64_t Nanoseconds() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1000000000 + now.tv_nsec;
}

// Values whose sum depends on the order in which they are added.
float Input(int rank, size_t i) {
  const uint64_t mixed = (i * 0x9e3779b97f4a7c15 + static_cast<uint64_t>(rank) * 0xbf58476d1ce4e5b9) >> 40;
  const float scale = (i + rank) % 7 == 0 ? 1e4f : 1.0f;
  return (static_cast<float>(mixed) / 16777216.0f - 0.5f) * scale;
}

std::byte Pattern(int rank, size_t i) { return static_cast<std::byte>(i * 31 + (i >> 9) + rank * 101 + 7); }

std::string Checked(std::span<const std::byte> bytes) { return absl::StrCat("ok ", Crc32c(bytes)); }

void Sum(Collective& group, size_t count, absl::Time deadline) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = Input(group.rank(), i);
  const absl::Status status = group.AllReduceSum(values, deadline);
  if (!status.ok()) return PrintFailure(status);
  for (size_t i = 0; i < count; ++i) {
    double sum = 0, magnitude = 0;
    for (int rank = 0; rank < group.size(); ++rank) {
      sum += Input(rank, i);
      magnitude += std::fabs(Input(rank, i));
    }
    // Each of size - 1 additions rounds once: half a unit in the last place of at most `magnitude`.
    if (!(std::fabs(values[i] - sum) <= (group.size() - 1) * magnitude * 0x1p-24)) {
      return Print(absl::StrCat("wrong sum at ", i, ": ", values[i], " instead of ", sum));
    }
  }
  Print(Checked(std::as_bytes(std::span(values))));
}

void Gather(Collective& group, size_t bytes, absl::Time deadline) {
  std::vector<std::byte> mine(bytes), all(bytes * group.size());
  for (size_t i = 0; i < bytes; ++i) mine[i] = Pattern(group.rank(), i);
  const absl::Status status = group.AllGather(mine, all, deadline);
  if (!status.ok()) return PrintFailure(status);
  for (size_t i = 0; i < all.size(); ++i) {
    if (all[i] != Pattern(static_cast<int>(i / bytes), i % bytes)) return Print(absl::StrCat("wrong byte at ", i));
  }
  Print(Checked(all));
}

void Broadcast(Collective& group, size_t size, int root, absl::Time deadline) {
  std::vector<std::byte> bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = Pattern(group.rank(), i);
  const absl::Status status = group.Broadcast(bytes, root, deadline);
  if (!status.ok()) return PrintFailure(status);
  for (size_t i = 0; i < size; ++i) {
    if (bytes[i] != Pattern(root, i)) return Print(absl::StrCat("wrong byte at ", i));
  }
  Print(Checked(bytes));
}

void BroadcastString(Collective& group, size_t size, int root, absl::Time deadline) {
  std::string text = "what a receiver had before";
  if (group.rank() == root) {
    text.resize(size);
    for (size_t i = 0; i < size; ++i) text[i] = static_cast<char>(Pattern(root, i));
  }
  const absl::Status status = group.BroadcastString(&text, root, deadline);
  if (!status.ok()) return PrintFailure(status);
  if (text.size() != size) return Print(absl::StrCat("wrong length ", text.size()));
  for (size_t i = 0; i < size; ++i) {
    if (text[i] != static_cast<char>(Pattern(root, i))) return Print(absl::StrCat("wrong byte at ", i));
  }
  Print(Checked(AsBytes(text)));
}

void Barrier(Collective& group, absl::Time deadline) {
  Print(absl::StrCat("entering ", Nanoseconds()));
  const absl::Status status = group.Barrier(deadline);
  const int64_t after = Nanoseconds();
  status.ok() ? Print(absl::StrCat("ok ", after)) : PrintFailure(status);
}

void Loop(Collective& group, size_t count, absl::Time deadline) {
  std::vector<float> values(count, 1.0f);
  for (bool first = true;; first = false) {
    const absl::Status status = group.AllReduceSum(values, deadline);
    if (!status.ok()) return PrintFailure(status);
    if (first) Print("looping");
  }
}

void AwaitLine() {
  char byte = 0;
  while (read(0, &byte, 1) == 1 && byte != '\n') {
  }
  Print("ok 0");
}

int Run(int argc, char** argv) {
  if (argc < 6) return 2;
  GroupOptions options;
  options.rank = std::atoi(argv[1]);
  options.size = std::atoi(argv[2]);
  options.rendezvous_port = static_cast<uint16_t>(std::atoi(argv[3]));
  options.group_name = argv[4];
  options.transport.transports = argv[5];
  options.blob = options.rank == 0 ? std::string(128, 'b') : "";
  absl::Duration limit = absl::Seconds(30);
  std::vector<std::vector<std::string>> steps;
  for (int i = 6; i < argc; ++i) steps.push_back(absl::StrSplit(argv[i], ':'));
  if (!steps.empty() && steps[0][0] == "deadline") limit = absl::Milliseconds(std::atoi(steps[0][1].c_str()));

  auto rendezvous = Rendezvous::Open(options);
  if (!rendezvous.ok()) {
    PrintFailure(rendezvous.status());
    return 1;
  }
  if (options.rank == 0) Print(absl::StrCat("port ", (*rendezvous)->port()));
  auto joined = (*rendezvous)->Join(absl::Now() + limit);
  if (!joined.ok()) {
    PrintFailure(joined.status());
    return 1;
  }
  if (joined->blob != std::string(128, 'b')) {
    Print("wrong blob");
    return 1;
  }
  UcxCollective group(*std::move(joined));
  Print("joined");
  for (const std::vector<std::string>& step : steps) {
    const absl::Time deadline = absl::Now() + limit;
    const auto number = [&](size_t i) {
      size_t value = 0;
      if (i >= step.size() || !absl::SimpleAtoi(step[i], &value)) std::abort();
      return value;
    };
    if (step[0] == "deadline") {
      limit = absl::Milliseconds(static_cast<int64_t>(number(1)));
    } else if (step[0] == "sum") {
      Sum(group, number(1), deadline);
    } else if (step[0] == "gather") {
      Gather(group, number(1), deadline);
    } else if (step[0] == "broadcast") {
      Broadcast(group, number(1), static_cast<int>(number(2)), deadline);
    } else if (step[0] == "string") {
      BroadcastString(group, number(1), static_cast<int>(number(2)), deadline);
    } else if (step[0] == "barrier") {
      Barrier(group, deadline);
    } else if (step[0] == "loop") {
      Loop(group, number(1), deadline);
    } else if (step[0] == "await") {
      AwaitLine();
    } else {
      return 2;
    }
  }
  return 0;
}

}  // namespace
}  // namespace perigee::transport

int main(int argc, char** argv) { return perigee::transport::Run(argc, argv); }

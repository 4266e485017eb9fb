// The other host's program in the fault tests: serves a region and moves bytes when told to.
//   fault_peer ADDRESS PORT BYTES    prints "PORT KEY" or "failed ...", then obeys, one line of answer per line:
//     fill SEED                      the whole region
//     check SEED GAP_SEED            "ok", or "wrong BYTES"
//     open ADDRESS PORT KEY MS       a link to another's region, in place of the one before: "ok" or "failed ..."
//     get SEED MS | put SEED MS      one batch over the link: "ok", "wrong BYTES" or "failed MS-TAKEN STATUS"
//     allocate BYTES                 "ok" or "failed ..."; given back at once
// It ends when its standard input does.
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "links.h"

namespace perigee::fault {
namespace {

// What the gaps of a local buffer hold, so that a transfer which writes there is seen.
constexpr uint64_t kLocalGapSeed = 999;

void Say(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

uint64_t Number(const std::string& word) {
  uint64_t number = 0;
  if (!absl::SimpleAtoi(word, &number)) std::abort();
  return number;
}

std::string Verdict(size_t wrong) { return wrong == 0 ? "ok" : absl::StrCat("wrong ", wrong); }

class Peer {
 public:
  absl::Status Start(const std::string& address, uint16_t port, size_t bytes) {
    context_ = MakeContext();
    PERIGEE_ASSIGN_OR_RETURN(served_, Serve(*context_, address, port, bytes));
    return absl::OkStatus();
  }
  std::string Greeting() const { return absl::StrCat(served_.listener.port(), " ", served_.key); }

  std::string Obey(const std::vector<std::string>& words) {
    const std::string& what = words[0];
    if (what == "fill") {
      Fill(served_.region.bytes(), Number(words.at(1)));
      return "ok";
    }
    if (what == "check") {
      return Verdict(CountWrong(served_.region.bytes(), Number(words.at(1)), Number(words.at(2))));
    }
    if (what == "open") {
      link_ = {};
      auto link = Open(*context_, words.at(1), static_cast<uint16_t>(Number(words.at(2))), words.at(3),
                       absl::Now() + absl::Milliseconds(Number(words.at(4))));
      if (!link.ok()) return absl::StrCat("failed ", link.status().ToString());
      link_ = *std::move(link);
      local_.resize(link_.region.size_bytes());
      return "ok";
    }
    if (what == "get" || what == "put") return MoveOnce(what, Number(words.at(1)), Number(words.at(2)));
    if (what == "allocate") {
      const auto region = context_->AllocateMemory(Number(words.at(1)));
      return region.ok() ? "ok" : absl::StrCat("failed ", region.status().ToString());
    }
    return absl::StrCat("unknown ", what);
  }

 private:
  std::string MoveOnce(const std::string& way, uint64_t seed, uint64_t limit_ms) {
    Fill(local_, kLocalGapSeed);
    if (way == "put") FillPieces(local_, seed);
    const absl::Time start = absl::Now();
    const absl::Status status =
        Move(link_, way == "get" ? Way::kGet : Way::kPut, local_, start + absl::Milliseconds(limit_ms));
    const int64_t took_ms = absl::ToInt64Milliseconds(absl::Now() - start);
    if (!status.ok()) return absl::StrCat("failed ", took_ms, " ", status.ToString());
    return way == "get" ? Verdict(CountWrong(local_, seed, kLocalGapSeed)) : "ok";
  }

  std::unique_ptr<transport::Context> context_;
  Served served_;
  Link link_;
  std::vector<std::byte> local_;
};

int Main(int argc, char** argv) {
  if (argc != 4) return 2;
  Peer peer;
  const absl::Status started =
      peer.Start(argv[1], static_cast<uint16_t>(Number(argv[2])), static_cast<size_t>(Number(argv[3])));
  Say(started.ok() ? peer.Greeting() : absl::StrCat("failed ", started.ToString()));
  if (!started.ok()) return 1;
  for (std::string line; std::getline(std::cin, line);) {
    Say(peer.Obey(absl::StrSplit(line, ' ')));
  }
  return 0;
}

}  // namespace
}  // namespace perigee::fault

int main(int argc, char** argv) { return perigee::fault::Main(argc, argv); }

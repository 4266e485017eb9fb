// perigee why: where blocks are, or why they are not; and where a prompt's stored prefix ends.
#include <algorithm>
#include <array>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "base/file.h"
#include "base/status.h"
#include "cluster/cli/cluster_access.h"
#include "cluster/cli/console.h"
#include "cluster/cli/exit_code.h"
#include "cluster/cli/prompt_keys.h"
#include "cluster/cli/store_keys.h"
#include "model/tokenizer.h"

namespace perigee::cli {
namespace {

struct Options {
  StoreVerbFlags flags;
  std::vector<std::string> keys;
  std::string prompt, prompt_file;
  std::string model_folder = DefaultModelFolder();
  std::string tenant, salt;
  bool no_bos = false;
};

// What the stores say of one plane.
struct PlaneAnswer {
  struct Copy {
    std::string store;
    kvstore::Tier tier{};
    uint64_t estimated_fetch_us = 0;
  };
  struct Absence {
    std::string store;
    kvstore::Miss miss;
  };
  std::vector<Copy> copies;
  std::vector<Absence> absences;

  // The one that says most: most stores never had a plane.
  const Absence* Telling() const {
    const Absence* telling = nullptr;
    for (const Absence& a : absences) {
      const bool says_more = telling != nullptr && telling->miss.reason == kvstore::MissReason::kNeverStored &&
                             a.miss.reason != kvstore::MissReason::kNeverStored;
      if (telling == nullptr || says_more) telling = &a;
    }
    return telling;
  }
};
// [key][plane kind - 1]
using Answers = std::vector<std::array<PlaneAnswer, 3>>;

absl::StatusOr<Answers> AskStores(StoreFleet& fleet, const std::vector<pod::BlockKey>& keys) {
  Answers answers(keys.size());
  absl::Mutex mu;
  PERIGEE_RETURN_IF_ERROR(fleet.ForEach([&](const std::string& id, kvstore::StoreClient& client) -> absl::Status {
    PERIGEE_ASSIGN_OR_RETURN(const kvstore::LookupResult result, client.Lookup(keys));
    absl::MutexLock lock(&mu);
    for (size_t i = 0; i < keys.size(); ++i) {
      for (const kvstore::FoundPlane& plane : result.blocks[i].planes) {
        answers[i][static_cast<size_t>(plane.kind) - 1].copies.push_back({id, plane.tier, plane.estimated_fetch_us});
      }
      for (const kvstore::MissedPlane& missed : result.blocks[i].misses) {
        answers[i][static_cast<size_t>(missed.kind) - 1].absences.push_back({id, missed.miss});
      }
    }
    return absl::OkStatus();
  }));
  return answers;
}

Json AnswerJson(const std::string& key, pod::PlaneKind kind, const PlaneAnswer& answer) {
  Json row = {{"key", key}, {"plane", pod::PlaneKindName(kind)}, {"stored", !answer.copies.empty()}};
  if (!answer.copies.empty()) {
    row["tier"] = TierName(answer.copies[0].tier);
    row["estimated_fetch_us"] = answer.copies[0].estimated_fetch_us;
    row["copies"] = Json::array();
    for (const auto& copy : answer.copies) {
      row["copies"].push_back(
          {{"store", copy.store}, {"tier", TierName(copy.tier)}, {"estimated_fetch_us", copy.estimated_fetch_us}});
    }
  } else if (const PlaneAnswer::Absence* why = answer.Telling()) {
    row["reason"] = kvstore::MissReasonName(why->miss.reason);
    row["when_unix_us"] = why->miss.when_unix_us;
    row["misses"] = Json::array();
    for (const auto& absence : answer.absences) {
      row["misses"].push_back({{"store", absence.store},
                               {"reason", kvstore::MissReasonName(absence.miss.reason)},
                               {"when_unix_us", absence.miss.when_unix_us}});
    }
  }
  return row;
}

std::string AnswerText(const PlaneAnswer& answer) {
  if (!answer.copies.empty()) {
    std::vector<std::string> copies;
    for (const auto& copy : answer.copies) {
      copies.push_back(absl::StrFormat("%s (%s, about %.1f ms)", copy.store, TierName(copy.tier),
                                       static_cast<double>(copy.estimated_fetch_us) / 1000));
    }
    return absl::StrCat("stored at ", absl::StrJoin(copies, ", "));
  }
  const PlaneAnswer::Absence* why = answer.Telling();
  if (why == nullptr) return "no store says";
  std::string text = kvstore::MissReasonName(why->miss.reason);
  if (why->miss.when_unix_us > 0) {
    absl::StrAppend(&text, " at ", absl::FormatTime(absl::FromUnixMicros(why->miss.when_unix_us)), " (", why->store,
                    ")");
  }
  return text;
}

absl::Status WhyKeys(const Options& o) {
  std::vector<pod::BlockKey> keys;
  for (const std::string& hex : o.keys) {
    PERIGEE_ASSIGN_OR_RETURN(const pod::BlockKey key, ParseKey(hex));
    keys.push_back(key);
  }
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<StoreFleet> fleet, StoreFleet::Open(o.flags));
  PERIGEE_ASSIGN_OR_RETURN(const Answers answers, AskStores(*fleet, keys));
  Json rows = Json::array();
  Table table({"BLOCK KEY", "PLANE", "WHERE, OR WHY NOT"});
  bool missing = false;
  for (size_t i = 0; i < keys.size(); ++i) {
    missing |= answers[i][static_cast<size_t>(pod::PlaneKind::kDistant) - 1].copies.empty();
    for (const pod::PlaneKind kind : pod::kPlaneKinds) {
      const PlaneAnswer& answer = answers[i][static_cast<size_t>(kind) - 1];
      rows.push_back(AnswerJson(keys[i].ToString(), kind, answer));
      table.Add({keys[i].ToString(), pod::PlaneKindName(kind), AnswerText(answer)});
    }
  }
  if (o.flags.cluster.json) {
    PrintJson(rows);
  } else {
    table.Print();
  }
  return missing ? Outcome(ExitCode::kNotFound) : absl::OkStatus();
}

absl::Status WhyPrompt(const Options& o) {
  std::string text = o.prompt;
  if (text.empty() && o.prompt_file.empty()) return UsageError("name block keys, or give --prompt or --prompt-file");
  if (!o.prompt_file.empty()) {
    PERIGEE_ASSIGN_OR_RETURN(text, ReadFile(o.prompt_file, 64 << 20));
  }
  if (text.empty()) return absl::InvalidArgumentError(absl::StrCat(o.prompt_file, " is empty"));
  PERIGEE_ASSIGN_OR_RETURN(const ClusterAccess cluster, ClusterAccess::Open(o.flags.cluster));
  PERIGEE_ASSIGN_OR_RETURN(const pod::Identity identity, IdentityOf(cluster, o.tenant, o.salt));
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<model::Tokenizer> tokenizer, model::LoadTokenizer(o.model_folder));
  PERIGEE_ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                           tokenizer->Encode(text, !o.no_bos && tokenizer->adds_bos_by_default()));
  const std::vector<pod::BlockKey> keys = StoredChain(identity, ids);
  if (keys.empty()) return absl::InvalidArgumentError("of a prompt of one token nothing is stored");
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<StoreFleet> fleet, StoreFleet::Of(cluster, o.flags.store));
  PERIGEE_ASSIGN_OR_RETURN(const Answers answers, AskStores(*fleet, keys));
  constexpr size_t kDistant = static_cast<size_t>(pod::PlaneKind::kDistant) - 1;
  size_t blocks = 0;
  while (blocks < keys.size() && !answers[blocks][kDistant].copies.empty()) ++blocks;
  const size_t cached = ids.size() - 1;
  const size_t tokens = std::min(blocks * static_cast<size_t>(identity.block_tokens), cached);
  const bool whole = blocks == keys.size();
  if (o.flags.cluster.json) {
    Json json = {{"tokens", ids.size()},
                 {"blocks", keys.size()},
                 {"stored_blocks", blocks},
                 {"stored_tokens", tokens},
                 {"root", keys[0].ToString()}};
    if (!whole) json["ends"] = AnswerJson(keys[blocks].ToString(), pod::PlaneKind::kDistant, answers[blocks][kDistant]);
    Json later = Json::array();
    for (size_t i = blocks; i < keys.size(); ++i) {
      if (!answers[i][kDistant].copies.empty()) later.push_back(keys[i].ToString());
    }
    json["stored_behind_the_gap"] = later;
    PrintJson(json);
  } else {
    std::printf(
        "prompt   %zu tokens: %zu blocks of %d for all but the last\nprefix   %zu blocks, %zu tokens are stored\n",
        ids.size(), keys.size(), identity.block_tokens, blocks, tokens);
    if (!whole) {
      std::printf("ends     at block %zu, %s: distant plane %s\n", blocks, keys[blocks].ToString().c_str(),
                  AnswerText(answers[blocks][kDistant]).c_str());
    }
  }
  return whole ? absl::OkStatus() : Outcome(ExitCode::kNotFound);
}

}  // namespace

void AddWhy(CLI::App& app, Action& action) {
  CLI::App* verb = app.add_subcommand("why", "Where blocks are, or why not; or where a prompt's stored prefix ends");
  auto o = std::make_shared<Options>();
  o->flags.Add(*verb);
  CLI::Option* keys = verb->add_option("keys", o->keys, "Block keys");
  CLI::Option* prompt = verb->add_option("--prompt", o->prompt, "A prompt instead")->excludes(keys);
  verb->add_option("--prompt-file", o->prompt_file, "The same, from a file")->excludes(keys)->excludes(prompt);
  verb->add_option("--model", o->model_folder, "Model folder; only its tokenizer is read")->capture_default_str();
  verb->add_option("--tenant", o->tenant, "The prompt's tenant");
  verb->add_option("--salt", o->salt, "And its salt");
  verb->add_flag("--no-bos", o->no_bos, "It does not begin with the model's begin-of-sequence token");
  verb->callback([o, &action] { action = [o] { return o->keys.empty() ? WhyPrompt(*o) : WhyKeys(*o); }; });
}

}  // namespace perigee::cli

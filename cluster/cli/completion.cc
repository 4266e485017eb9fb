// perigee completion bash|zsh|fish: a shell's completion of this program's verbs and flags, from the very tree that
// parses them.
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "cluster/cli/command.h"

namespace perigee::cli {
namespace {

// What may follow a path of verbs ("", "store", "store ls").
struct Words {
  std::vector<std::pair<std::string, std::string>> verbs;  // With what they do.
  std::vector<std::pair<std::string, std::string>> flags;
};
using Tree = std::map<std::string, Words>;

void Collect(const CLI::App& app, const std::string& path, Tree* tree) {
  Words& words = (*tree)[path];
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) {
      words.flags.emplace_back(absl::StrCat("--", name), option->get_description());
    }
  }
  for (const CLI::App* verb : app.get_subcommands([](const CLI::App*) { return true; })) {
    (*tree)[path].verbs.emplace_back(verb->get_name(), verb->get_description());
    Collect(*verb, path.empty() ? verb->get_name() : absl::StrCat(path, " ", verb->get_name()), tree);
  }
}

std::string BashScript(const Tree& tree) {
  std::string cases;
  for (const auto& [path, words] : tree) {
    std::vector<std::string> all;
    for (const auto& [name, what] : words.verbs) all.push_back(name);
    for (const auto& [name, what] : words.flags) all.push_back(name);
    absl::StrAppend(&cases, "    '", path, "') words='", absl::StrJoin(all, " "), "' ;;\n");
  }
  std::vector<std::string> paths;
  for (const auto& [path, words] : tree) paths.push_back(absl::StrCat("'", path, "'"));
  return absl::StrCat(R"(# Completion of perigee. Put into ~/.bashrc: source <(perigee completion bash)
_perigee() {
  local current="${COMP_WORDS[COMP_CWORD]}" path='' word next words='' i
  for ((i = 1; i < COMP_CWORD; ++i)); do
    word="${COMP_WORDS[i]}"
    next="${path:+$path }$word"
    case "$next" in
      )",
                      absl::StrJoin(paths, "|"), R"() path="$next" ;;
    esac
  done
  case "$path" in
)",
                      cases, R"(  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  [[ ${#COMPREPLY[@]} -gt 0 ]] || COMPREPLY=($(compgen -f -- "$current"))
}
complete -F _perigee perigee
)");
}

std::string ZshScript(const Tree& tree) {
  return absl::StrCat("# Completion of perigee. Put into ~/.zshrc: source <(perigee completion zsh)\n",
                      "autoload -U +X bashcompinit && bashcompinit\n", BashScript(tree));
}

std::string FishScript(const Tree& tree) {
  const auto quoted = [](const std::string& text) {
    return absl::StrCat("'", absl::StrReplaceAll(text, {{"\\", "\\\\"}, {"'", "\\'"}}), "'");
  };
  std::string script = R"(# Completion of perigee. Put into ~/.config/fish/completions/perigee.fish
function __perigee_path
  set -l path
  for word in (commandline -opc)[2..]
    string match -q -- '-*' $word; or set -a path $word
  end
  string join ' ' -- $path
end
complete -c perigee -f
)";
  for (const auto& [path, words] : tree) {
    // What is behind the verbs (a key, a file) does not end their completion.
    const std::string here = path.empty() ? "test -z (__perigee_path | string collect)"
                                          : absl::StrCat("string match -qr -- '^", path, "( |$)' (__perigee_path)");
    const std::string exactly = absl::StrCat("test (__perigee_path | string collect; or echo) = ", quoted(path));
    for (const auto& [name, what] : words.verbs) {
      absl::StrAppend(&script, "complete -c perigee -n ", quoted(exactly), " -a ", name, " -d ", quoted(what), "\n");
    }
    for (const auto& [name, what] : words.flags) {
      absl::StrAppend(&script, "complete -c perigee -n ", quoted(here), " -l ", name.substr(2), " -d ", quoted(what),
                      words.verbs.empty() ? " -F" : "", "\n");
    }
  }
  return script;
}

}  // namespace

void AddCompletion(CLI::App& app, Action& action) {
  CLI::App* verb = app.add_subcommand("completion", "Print a shell's completion script");
  auto shell = std::make_shared<std::string>();
  verb->add_option("shell", *shell, "bash, zsh or fish")->required()->check(CLI::IsMember({"bash", "zsh", "fish"}));
  verb->callback([shell, &app, &action] {
    action = [shell, &app] {
      Tree tree;
      Collect(app, "", &tree);
      const std::string script = *shell == "bash"  ? BashScript(tree)
                                 : *shell == "zsh" ? ZshScript(tree)
                                                   : FishScript(tree);
      std::fputs(script.c_str(), stdout);
      return absl::OkStatus();
    };
  });
}

}  // namespace perigee::cli

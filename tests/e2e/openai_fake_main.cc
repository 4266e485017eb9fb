// The front door before a cluster that only counts, for clients to be tried on: says "ready ADDRESS" and serves until
// SIGTERM.
//
//   e2e_openai_fake MODEL_FOLDER --ready-fd N
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cluster/gateway/http_server.h"
#include "cluster/process.h"
#include "fake_backend.h"

int main(int argc, char** argv) {
  using namespace perigee;
  if (argc != 4 || std::strcmp(argv[2], "--ready-fd") != 0) {
    std::fprintf(stderr, "usage: %s MODEL_FOLDER --ready-fd N\n", argv[0]);
    return 2;
  }
  cluster::BlockTerminationSignals();
  const auto tokenizer = model::LoadTokenizer(argv[1]);
  const auto chat_template = model::ChatTemplate::Load(argv[1]);
  if (!tokenizer.ok() || !chat_template.ok()) {
    std::fprintf(stderr, "%s %s\n", tokenizer.status().ToString().c_str(), chat_template.status().ToString().c_str());
    return 1;
  }
  cluster::FakeBackend backend;
  cluster::HttpServerOptions options;
  options.address = "127.0.0.1:0";
  const cluster::FrontModel model = {
      .name = "podling", .tokenizer = tokenizer->get(), .chat_template = chat_template->get(), .context_tokens = 4096};
  auto server = cluster::HttpServer::Start(options, model, &backend);
  if (!server.ok()) {
    std::fprintf(stderr, "%s\n", server.status().ToString().c_str());
    return 1;
  }
  cluster::AnnounceReady(std::atoi(argv[3]), (*server)->address());
  cluster::WaitForTermination();
  return (*server)->Drain(absl::Seconds(5)) ? 0 : 1;
}

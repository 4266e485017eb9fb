// A client that keeps to none of the transport's rules: raw UCX, driven by hostile_test.cc over lines on its standard
// input, one line of answer each.
//
//   connect N                    N connections to HOST PORT; later commands use the last one
//   hello TOKEN MIN MAX MAGIC    "answer CODE TEXT", or "closed"
//   own                          from now on headers carry the server's channel (of the hello)
//   guess CHANNEL                ... this channel
//   region ID                    the region that operations name
//   op put|get HEADER_BYTES ADDRESS SIZE PIECES PAYLOAD_BYTES eager|rndv [PIECE_SIZE]
//                                "answer CODE" | "data BYTES" | "closed" | "nothing": what came within a second
//   stall COUNT ADDRESS SIZE     rendezvous puts whose data is not given until `resume`
//   resume                       lives on for a second
//   message KIND HANDLER HEADER_BYTES   as op; "reply CODE"
//   flood COUNT HANDLER          calls, without taking answers, "sent" when they are on their way
//   am ID BYTES                  a message of that id with a header of so many random bytes
//   rma put|get ADDRESS SIZE     UCX's one-sided operations with a key of this program's own memory: UCX's status
#include <arpa/inet.h>
#include <ucp/api/ucp.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <list>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/time/clock.h"
#include "transport/wire.h"

namespace {

using namespace perigee::transport::internal;  // NOLINT: the wire's names

class Hostile {
 public:
  Hostile(const char* host, const char* port) {
    to_.sin_family = AF_INET;
    to_.sin_port = htons(static_cast<uint16_t>(std::atoi(port)));
    inet_pton(AF_INET, host, &to_.sin_addr);
    const std::string segment = std::to_string(kSegmentBytes);  // as a peer of ours has
    setenv("UCX_TCP_TX_SEG_SIZE", segment.c_str(), 1);
    setenv("UCX_TCP_RX_SEG_SIZE", segment.c_str(), 1);
    ucp_config_t* config = nullptr;
    Check(ucp_config_read(nullptr, nullptr, &config));
    Check(ucp_config_modify(config, "TLS", "tcp"));
    ucp_params_t params{};
    params.field_mask = UCP_PARAM_FIELD_FEATURES;
    params.features = UCP_FEATURE_AM | UCP_FEATURE_RMA;
    Check(ucp_init(&params, config, &context_));
    ucp_config_release(config);
    ucp_worker_params_t worker_params{};
    Check(ucp_worker_create(context_, &worker_params, &worker_));
    for (const unsigned id : {kHelloAnswerId, kPingId, kMessageId, kGetDataId, kAnswerId}) {
      ucp_am_handler_param_t handler{};
      handler.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS |
                           UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG;
      handler.id = id;
      handler.flags = UCP_AM_FLAG_WHOLE_MSG;
      handler.cb = &Hostile::OnAm;
      handler.arg = new std::pair<Hostile*, unsigned>(this, id);
      Check(ucp_worker_set_am_recv_handler(worker_, &handler));
    }
    memory_.resize(4 << 20, 'H');
  }

  std::string Run(std::istringstream& line) {
    std::string verb;
    line >> verb;
    said_.clear();
    if (verb == "connect") return Connect(line);
    if (verb == "hello") return Hello(line);
    if (verb == "own") {
      channel_ = server_channel_;
      return "ok";
    }
    if (verb == "guess") {
      line >> channel_;
      return "ok";
    }
    if (verb == "region") {
      line >> region_;
      return "ok";
    }
    if (verb == "op") return Operation(line);
    if (verb == "stall") return Stall(line);
    if (verb == "resume") {
      Progress([] { return false; }, absl::Seconds(1));
      return "ok";
    }
    if (verb == "message") return Message(line);
    if (verb == "flood") return Flood(line);
    if (verb == "am") {
      unsigned id = 0;
      size_t bytes = 0;
      line >> id >> bytes;
      std::string header(bytes, '\0');
      for (char& c : header) c = static_cast<char>(random_());
      Send(id, header, "", 0);
      return Heard(absl::Milliseconds(10));
    }
    if (verb == "rma") return OneSided(line);
    return "what?";
  }

 private:
  static void Check(ucs_status_t status) {
    if (status == UCS_OK) return;
    std::fprintf(stderr, "hostile client: %s\n", ucs_status_string(status));
    std::exit(9);
  }

  bool Progress(absl::FunctionRef<bool()> done, absl::Duration limit) {
    const absl::Time until = absl::Now() + limit;
    while (!done()) {
      if (absl::Now() > until) return false;
      if (ucp_worker_progress(worker_) == 0) absl::SleepFor(absl::Microseconds(50));
    }
    return true;
  }
  // What the server says to the last command.
  std::string Heard(absl::Duration limit = absl::Seconds(1)) {
    Progress([&] { return closed_ || !said_.empty(); }, limit);
    return !said_.empty() ? said_ : closed_ ? "closed" : "nothing";
  }

  std::string Connect(std::istringstream& line) {
    int count = 0;
    line >> count;
    closed_ = false;
    for (int i = 0; i < count; ++i) {
      ucp_ep_params_t params{};
      params.field_mask = UCP_EP_PARAM_FIELD_FLAGS | UCP_EP_PARAM_FIELD_SOCK_ADDR |
                          UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
      params.flags = UCP_EP_PARAMS_FLAGS_CLIENT_SERVER;
      params.sockaddr.addr = reinterpret_cast<const sockaddr*>(&to_);
      params.sockaddr.addrlen = sizeof(to_);
      params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
      params.err_handler.cb = [](void* self, ucp_ep_h, ucs_status_t) { static_cast<Hostile*>(self)->closed_ = true; };
      params.err_handler.arg = this;
      const ucs_status_t status = ucp_ep_create(worker_, &params, &endpoint_);
      if (status != UCS_OK) return ucs_status_string(status);
      ucp_worker_progress(worker_);
    }
    return "ok";
  }

  std::string Hello(std::istringstream& line) {
    perigee::transport::internal::Hello hello;
    std::string magic;
    line >> hello.token >> hello.version_min >> hello.version_max >> magic;
    hello.channel = 77;
    hello.machine = "hostile";
    std::string bytes = EncodeHello(hello);
    if (magic != "right") bytes[0] ^= 1;
    Send(kHelloId, "", bytes, UCP_AM_SEND_FLAG_EAGER | UCP_AM_SEND_FLAG_REPLY);
    return Heard(absl::Seconds(20));
  }

  OpHeader Header(bool put, uint64_t address, uint64_t size, uint32_t pieces) {
    OpHeader header;
    header.channel = channel_;
    header.op = put ? 1000 : 2000;
    header.region = region_;
    header.address = address;
    header.size = size;
    header.pieces = pieces;
    return header;
  }

  std::string Operation(std::istringstream& line) {
    std::string way, protocol;
    size_t header_bytes = 0, payload_bytes = 0;
    uint64_t address = 0, size = 0, piece_size = 0;
    uint32_t pieces = 0;
    line >> way >> header_bytes >> address >> size >> pieces >> payload_bytes >> protocol >> piece_size;
    const OpHeader header = Header(way == "put", address, size, pieces);
    std::string bytes(reinterpret_cast<const char*>(&header), sizeof(header));
    bytes.resize(header_bytes, 'x');
    std::string payload(payload_bytes, 'P');
    if (piece_size != 0) {  // a table of equal pieces, one after the other
      for (size_t i = 0; i < pieces && (i + 1) * sizeof(WirePiece) <= payload.size(); ++i) {
        const WirePiece piece{address + i * piece_size, piece_size};
        std::memcpy(payload.data() + i * sizeof(piece), &piece, sizeof(piece));
      }
    }
    Send(way == "put" ? kPutId : kGetId, bytes, payload,
         protocol == "rndv" ? UCP_AM_SEND_FLAG_RNDV : UCP_AM_SEND_FLAG_EAGER);
    return Heard();
  }

  std::string Stall(std::istringstream& line) {
    int count = 0;
    uint64_t address = 0, size = 0;
    line >> count >> address >> size;
    for (int i = 0; i < count; ++i) {
      const OpHeader header = Header(/*put=*/true, address, size, 1);
      kept_.emplace_back(reinterpret_cast<const char*>(&header), sizeof(header));
      ucp_request_param_t param{};
      param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
      param.flags = UCP_AM_SEND_FLAG_RNDV;
      ucp_am_send_nbx(endpoint_, kPutId, kept_.back().data(), kept_.back().size(), memory_.data(), size, &param);
    }
    return "ok";
  }

  std::string Message(std::istringstream& line) {
    MessageHeader header;
    int kind = 0;
    line >> kind >> header.handler >> header.header_bytes;
    header.channel = channel_;
    header.call = 5;
    header.kind = static_cast<MessageKind>(kind);
    Send(kMessageId, std::string(reinterpret_cast<const char*>(&header), sizeof(header)), "payload",
         UCP_AM_SEND_FLAG_EAGER);
    return Heard();
  }

  std::string Flood(std::istringstream& line) {
    int count = 0;
    MessageHeader header;
    line >> count >> header.handler;
    header.channel = channel_;
    header.kind = MessageKind::kRequest;
    kept_.emplace_back(reinterpret_cast<const char*>(&header), sizeof(header));
    const std::string& bytes = kept_.back();
    for (int i = 0; i < count; ++i) {
      ucp_request_param_t param{};
      param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
      param.flags = UCP_AM_SEND_FLAG_EAGER;
      ucp_am_send_nbx(endpoint_, kMessageId, bytes.data(), bytes.size(), nullptr, 0, &param);
    }
    return "sent";
  }

  std::string OneSided(std::istringstream& line) {
    std::string way;
    uint64_t address = 0, size = 0;
    line >> way >> address >> size;
    ucp_mem_map_params_t params{};
    params.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH;
    params.address = memory_.data();
    params.length = memory_.size();
    ucp_mem_h memory = nullptr;
    Check(ucp_mem_map(context_, &params, &memory));
    void* packed = nullptr;
    size_t packed_bytes = 0;
    Check(ucp_rkey_pack(context_, memory, &packed, &packed_bytes));
    ucp_rkey_h key = nullptr;
    ucs_status_t status = ucp_ep_rkey_unpack(endpoint_, packed, &key);
    if (status != UCS_OK) return ucs_status_string(status);
    ucp_request_param_t param{};
    ucs_status_ptr_t request = way == "put" ? ucp_put_nbx(endpoint_, memory_.data(), size, address, key, &param)
                                            : ucp_get_nbx(endpoint_, memory_.data(), size, address, key, &param);
    std::string result = Ended(request, absl::Seconds(3));
    if (way == "put" && result == ucs_status_string(UCS_OK)) {
      result = Ended(ucp_ep_flush_nbx(endpoint_, &param), absl::Seconds(3));
    }
    if (way == "get" && std::memcmp(memory_.data(), std::string(size, 'H').data(), size) != 0) result += " LEAKED";
    return result;
  }

  std::string Ended(ucs_status_ptr_t request, absl::Duration limit) {
    if (request == nullptr) return ucs_status_string(UCS_OK);
    if (UCS_PTR_IS_ERR(request)) return ucs_status_string(UCS_PTR_STATUS(request));
    Progress([&] { return ucp_request_check_status(request) != UCS_INPROGRESS; }, limit);
    return ucs_status_string(ucp_request_check_status(request));
  }

  void Send(unsigned id, std::string header, std::string payload, uint32_t flags) {
    kept_.push_back(std::move(header));
    const std::string& kept_header = kept_.back();
    kept_.push_back(std::move(payload));
    const std::string& kept_payload = kept_.back();
    ucp_request_param_t param{};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
    param.flags = flags;
    const ucs_status_ptr_t request = ucp_am_send_nbx(endpoint_, id, kept_header.data(), kept_header.size(),
                                                     kept_payload.data(), kept_payload.size(), &param);
    if (request != nullptr && !UCS_PTR_IS_ERR(request)) ucp_request_free(request);
  }

  static ucs_status_t OnAm(void* arg, const void* header, size_t header_length, void* data, size_t length,
                           const ucp_am_recv_param_t* param) {
    const auto [self, id] = *static_cast<std::pair<Hostile*, unsigned>*>(arg);
    std::ostringstream said;
    if (id == kHelloAnswerId) {
      const auto answer = DecodeHelloAnswer({static_cast<const char*>(data), length});
      if (!answer.ok()) return UCS_OK;
      self->server_channel_ = answer->channel;
      said << "answer " << answer->code << " " << answer->message;
    } else if (id == kAnswerId) {
      AnswerHeader answer;
      if (ReadHeader(header, header_length, &answer)) said << "answer " << answer.code;
    } else if (id == kGetDataId) {
      said << "data " << length;
    } else if (id == kMessageId) {
      MessageHeader message;
      if (ReadHeader(header, header_length, &message)) said << "reply " << message.code;
    }
    if (self->said_.empty()) self->said_ = said.str();
    (void)param;  // a rendezvous is never asked for: the server's part waits
    return UCS_OK;
  }

  sockaddr_in to_{};
  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  ucp_ep_h endpoint_ = nullptr;
  bool closed_ = false;
  uint64_t server_channel_ = 0, channel_ = 0, region_ = 0;
  std::string said_;
  std::string memory_;
  std::list<std::string> kept_;  // UCX reads what it sends some time later
  std::mt19937_64 random_{1};
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  Hostile hostile(argv[1], argv[2]);
  for (std::string text; std::getline(std::cin, text);) {
    std::istringstream line(text);
    std::cout << hostile.Run(line) << std::endl;
  }
  _exit(0);  // without a word to the server
}

// Inside of transport/: the progress thread and what it owns. Not for other rooms.
//
// Threads: public methods of Core may be called from any thread; members ending in "on the thread" belong to the
// progress thread. A public object never calls UCX itself: it posts a closure.
#ifndef PERIGEE_TRANSPORT_CORE_H_
#define PERIGEE_TRANSPORT_CORE_H_

#include <ucp/api/ucp.h>

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/file.h"
#include "transport/context.h"
#include "transport/event.h"
#include "transport/remote_key.h"

namespace perigee::transport::internal {

inline constexpr uint16_t kFirstReservedId = 0xff00;
// UCX's active-message ids. Those of Context::SetHandler are inside kMessageId's.
inline constexpr unsigned kMessageId = 1;
inline constexpr unsigned kPutDataId = 2;
inline constexpr unsigned kGetRequestId = 3;
inline constexpr unsigned kGetDataId = 4;
inline constexpr unsigned kAnswerId = 5;
inline constexpr uint16_t kHelloId = 0xffff;

// UCX's status in our words: what failed, UCX's text, the code that callers act on.
absl::Status UcxError(absl::string_view what, ucs_status_t status);

struct Serve;

struct Region {
  ~Region();
  bool Contains(uint64_t address, uint64_t length) const {
    const uint64_t begin = reinterpret_cast<uint64_t>(base);
    return address >= begin && address - begin <= size && length <= size - (address - begin);
  }
  uint64_t id = 0;
  std::shared_ptr<Core> core;
  ucp_mem_h handle = nullptr;
  std::byte* base = nullptr;
  size_t size = 0;
  std::string remote_key;
  // On the thread:
  std::vector<Serve*> serving;  // peers' transfers under way in this memory
  Event* idle = nullptr;        // whom to tell when a region being unmapped has no more of them
  bool orphan = false;          // its MemoryRegion is gone: FinishUnmap deletes it
};

// A peer's transfer that this side carries out, see remote_access.cc. On the thread.
struct Serve {
  std::shared_ptr<Peer> endpoint;
  Region* region = nullptr;
  uint64_t op_id = 0;
  std::string header;  // UCX reads it until the send has ended
};

// How the bytes of a region are reached.
enum class Path {
  kMapped,    // the peer's shared memory is mapped here (ucp_rkey_ptr): copied
  kOneSided,  // RDMA: ucp_put_nbx, ucp_get_nbx
  kMessages,  // everything else: UCX active messages, see remote_access.cc
};

struct RemoteKey {
  ~RemoteKey();
  std::shared_ptr<Peer> endpoint;
  ucp_rkey_h handle = nullptr;
  Path path = Path::kMessages;
  std::byte* mapped = nullptr;  // kMapped: where `base` is mapped here
  uint64_t region_id = 0;
  uint64_t base = 0;
  uint64_t size = 0;
};

struct ListenerState {
  std::shared_ptr<Core> core;
  ucp_listener_h handle = nullptr;
  uint16_t port = 0;
  void Close();
};

struct Peer {
  std::shared_ptr<Core> core;
  std::string peer_name;  // "host:port", for messages
  // Set before a Endpoint is handed out:
  EngineId peer_id{};
  bool same_machine = false;
  bool one_sided = false;  // over RDMA
  std::atomic<bool> connected{false};
  // On the thread:
  ucp_ep_h handle = nullptr;
  bool accepted = false;
  bool failed = false;   // no new operations; waiting to be force-closed
  bool closing = false;  // UCX was asked to close
  bool closed = false;   // UCX has let go of every buffer
  absl::Status failure;
};

enum class BatchKind { kPut, kGet, kSend, kCall, kReply };

struct Piece {
  std::byte* local = nullptr;
  size_t size = 0;
  uint64_t remote = 0;
  const RemoteKey* key = nullptr;
};

// One request of the kMessages path, from its sending to the peer's answer.
struct Op {
  Batch* batch = nullptr;
  uint64_t id = 0;
  std::byte* local = nullptr;
  size_t size = 0;
  std::string header;  // UCX reads it until the send has ended
};

struct Batch {
  BatchKind kind = BatchKind::kPut;
  std::shared_ptr<Peer> endpoint;
  absl::Time deadline = absl::InfiniteFuture();
  std::vector<Piece> pieces;                     // transfers
  std::vector<std::shared_ptr<RemoteKey>> keys;  // kept alive
  std::string message;                           // messages: the encoded bytes
  uint64_t call_id = 0;
  uint64_t bytes = 0;

  // On the thread:
  size_t next = 0;         // piece to issue
  size_t next_offset = 0;  // in that piece
  size_t outstanding = 0;  // UCX requests that have not called back
  bool one_sided = false;  // something went the kOneSided path: needs a flush
  bool flushing = false;
  size_t unanswered = 0;                 // of ops
  std::vector<std::unique_ptr<Op>> ops;  // kept until the batch ends
  bool answered = false;
  absl::Status error;

  // Written before `done` is notified, read after.
  absl::Status result;
  std::string reply;
  Event done;

  bool is_transfer() const { return kind == BatchKind::kPut || kind == BatchKind::kGet; }
};

struct Counters {
  std::atomic<uint64_t> put_bytes{0}, get_bytes{0}, put_transfers{0}, get_transfers{0}, messages_sent{0},
      messages_received{0}, failed_batches{0}, connections_opened{0}, connections_accepted{0}, connections_failed{0};
};

std::string EncodeOutgoing(BatchKind kind, uint16_t id, uint64_t call_id, absl::string_view header,
                           absl::string_view payload);

class Core : public std::enable_shared_from_this<Core> {
 public:
  static absl::StatusOr<std::shared_ptr<Core>> Create(const Options& options);
  ~Core();
  Core(const Core&) = delete;
  Core& operator=(const Core&) = delete;

  // Ends everything and joins the thread. Once, from Context's destructor.
  void Shutdown();

  // Runs `fn` on the thread, soon. False (and fn is dropped) after shutdown.
  bool Post(std::function<void()> fn);
  // The same, and waits for it. Inline when called on the thread.
  absl::Status Run(absl::FunctionRef<absl::Status()> fn);
  bool OnThread() const { return std::this_thread::get_id() == thread_id_; }

  // Starts the batch; its `done` is notified in every case where this returns OK.
  absl::Status Start(std::shared_ptr<Batch> batch);
  // Start, then wait. The batch's result.
  absl::Status StartAndWait(std::shared_ptr<Batch> batch);
  uint64_t NextCallId() { return next_call_id_.fetch_add(1); }

  // Ends the registration. Peers' transfers under way in it are cut off by closing their connections.
  void Unmap(Region* region);
  // On the thread: registers region->base, or allocates region->size bytes; fills in handle, base and remote_key.
  absl::Status Map(Region* region, bool allocate);

  // On the thread:
  absl::StatusOr<std::shared_ptr<Peer>> OpenEndpoint(const ucp_ep_params_t& params, std::string peer_name,
                                                         bool accepted);
  void FailEndpoint(Peer* endpoint, absl::Status why);
  // Fills in handle, path, mapped.
  absl::Status UnpackKey(RemoteKey* key, const void* ucx_key);
  // Finds out how the other side can be reached; `hello` is its answer to kHelloId.
  absl::Status LearnPeer(Peer* endpoint, absl::string_view hello);
  absl::StatusOr<std::string> Describe(Peer* endpoint);
  void DestroyKey(ucp_rkey_h key);
  absl::StatusOr<ucp_listener_h> OpenListener(const ucp_listener_params_t& params);
  void CloseListener(ucp_listener_h listener);
  void SetHandler(uint16_t id, MessageHandler handler);

  Counters counters;

 private:
  explicit Core(const Options& options) : options_(options) {}
  absl::Status Init();
  void Loop();
  void Stop();
  bool RunPosted();
  void Sleep();
  // endpoint.cc, on the thread:
  void AdvanceAll();
  bool Advance(Batch* batch);  // true when the batch has ended and UCX holds nothing of it
  void IssuePieces(Batch* batch);
  void Issued(Batch* batch, ucs_status_ptr_t request, const char* what);
  void Completed(Batch* batch, ucs_status_t status);
  void SendMessage(Batch* batch);
  void Flush(Batch* batch);
  void End(Batch* batch);
  void CheckDeadlines(absl::Time now);
  void CloseFailedEndpoints();
  void ReceiveMessage(absl::string_view bytes, ucp_ep_h reply_to);

  // remote_access.cc, on the thread:
  void IssueOp(Batch* batch, std::byte* local, size_t size, uint64_t remote, const RemoteKey* key);
  void OpReceived(Op* op);
  void ForgetOps(Batch* batch);
  void AnswerOp(const std::shared_ptr<Peer>& endpoint, uint64_t op_id, const absl::Status& status);
  void EndServe(Serve* serve);
  void BeginUnmap(Region* region);
  void FinishUnmap(Region* region);
  absl::Status SetAmHandlers();
  static ucs_status_t OnPutData(void* core, const void* header, size_t header_length, void* data, size_t length,
                                const ucp_am_recv_param_t* param);
  static ucs_status_t OnGetRequest(void* core, const void* header, size_t header_length, void* data, size_t length,
                                   const ucp_am_recv_param_t* param);
  static ucs_status_t OnGetData(void* core, const void* header, size_t header_length, void* data, size_t length,
                                const ucp_am_recv_param_t* param);
  static ucs_status_t OnAnswer(void* core, const void* header, size_t header_length, void* data, size_t length,
                               const ucp_am_recv_param_t* param);
  static void OnServeSent(void* request, ucs_status_t status, void* serve);
  static void OnServeReceived(void* request, ucs_status_t status, size_t length, void* serve);
  static void OnOpReceived(void* request, ucs_status_t status, size_t length, void* op);

  static void OnOperation(void* request, ucs_status_t status, void* batch);
  static void OnClosed(void* request, ucs_status_t status, void* endpoint);
  static void OnEndpointError(void* endpoint, ucp_ep_h handle, ucs_status_t status);
  static void OnConnectionRequest(ucp_conn_request_h request, void* core);
  static ucs_status_t OnMessage(void* core, const void* header, size_t header_length, void* data, size_t length,
                                const ucp_am_recv_param_t* param);

  const Options options_;
  EngineId id_{};
  std::string machine_;  // equal for processes that can share memory
  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  int ucx_fd_ = -1;
  UniqueFd wake_fd_;
  std::thread thread_;
  std::thread::id thread_id_;
  std::atomic<uint64_t> next_call_id_{1};

  std::mutex mutex_;  // guards posted_, stopped_
  std::vector<std::function<void()>> posted_;
  bool stopped_ = false;
  std::atomic<bool> has_posted_{false};
  std::atomic<bool> sleeping_{false};
  std::mutex unmap_mutex_;  // unmapping after the thread has ended

  // On the thread:
  bool stopping_ = false;
  bool dirty_ = false;  // some batch may be able to advance
  std::vector<std::shared_ptr<Batch>> active_;
  std::unordered_map<uint64_t, Batch*> calls_;  // waiting for an answer
  std::unordered_map<uint64_t, Op*> ops_;       // waiting for an answer
  uint64_t next_op_id_ = 1;
  std::unordered_map<uint64_t, Region*> regions_;  // by id
  std::unordered_set<Region*> unmapping_;          // no longer in regions_, but transfers are under way
  std::unordered_map<Peer*, std::shared_ptr<Peer>> endpoints_;
  std::unordered_map<ucp_ep_h, Peer*> by_handle_;
  bool any_failed_ = false;
  bool any_closed_ = false;
  std::unordered_set<ucp_rkey_h> keys_;
  std::unordered_set<ucp_listener_h> listeners_;
  std::unordered_map<uint16_t, MessageHandler> handlers_;
};

}  // namespace perigee::transport::internal

#endif  // PERIGEE_TRANSPORT_CORE_H_

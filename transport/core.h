// Inside of transport/: a rail (Core), what rails share (Shared), and the state of connections. Not for other rooms.
//
// Threads. Whoever holds a rail's role (its driver) may touch UCX and the members marked "driver". The rail's own
// thread takes the role when UCX's descriptor has something and nobody else drives; a caller takes it to start work,
// and to wait for its own work without a hand-over. A caller that finds the role taken posts a closure, which the
// driver runs.
#ifndef PERIGEE_TRANSPORT_CORE_H_
#define PERIGEE_TRANSPORT_CORE_H_

#include <ucp/api/ucp.h>

#include <atomic>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <set>
#include <shared_mutex>
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
#include "transport/patience.h"
#include "transport/port_guard.h"
#include "transport/put_sums.h"
#include "transport/slots.h"
#include "transport/transfer.h"
#include "transport/wire.h"

namespace perigee::transport::internal {

// UCX's status in our words: what failed, UCX's text, the code that callers act on.
absl::Status UcxError(absl::string_view what, ucs_status_t status);

// Whether a message's payload waits at the peer for ucp_am_recv_data_nbx.
inline bool IsRendezvous(const ucp_am_recv_param_t* param) {
  return (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0;
}

// For ucp_am_send_nbx.
inline uint32_t SendFlag(size_t payload_bytes) {
  return IsLong(payload_bytes) ? UCP_AM_SEND_FLAG_RNDV : UCP_AM_SEND_FLAG_EAGER;
}

// For UCP_DATATYPE_IOV; what follows the last part joins it.
inline void AddPart(std::vector<ucp_dt_iov_t>& parts, const std::byte* data, size_t size) {
  if (!parts.empty() && static_cast<std::byte*>(parts.back().buffer) + parts.back().length == data) {
    parts.back().length += size;
  } else {
    parts.push_back({const_cast<std::byte*>(data), size});
  }
}

// A number that nobody can guess.
absl::StatusOr<uint64_t> RandomNumber();

struct Counters {
  std::atomic<uint64_t> put_bytes{0}, get_bytes{0}, put_transfers{0}, get_transfers{0}, served_bytes{0},
      refused_serves{0}, refused_peers{0}, messages_sent{0}, messages_received{0}, failed_batches{0},
      connections_opened{0}, connections_accepted{0}, connections_failed{0};
};

// Memory that this context owns or was lent, as its rails serve it. Kept by its MemoryRegion and by what is under way
// in it.
struct Region {
  ~Region();
  bool Contains(uint64_t address, uint64_t length) const {
    const uint64_t begin = reinterpret_cast<uint64_t>(base);
    return address >= begin && address - begin <= size && length <= size - (address - begin);
  }
  uint64_t id = 0;
  std::shared_ptr<Shared> shared;
  MemoryKind kind = MemoryKind::kHost;
  Sharing sharing = Sharing::kOpen;
  std::byte* base = nullptr;
  size_t size = 0;
  std::string remote_key, served_key;
  std::unique_ptr<PutSums> sums;  // of leased host memory
  std::shared_ptr<Core> rail;     // where it is mapped
  ucp_mem_h handle = nullptr;
};

// How the bytes of a remote region are reached.
enum class Path {
  kMapped,    // the peer's shared memory is mapped here (ucp_rkey_ptr): copied
  kOneSided,  // RDMA: ucp_put_nbx, ucp_get_nbx
  kMessages,  // everything else: active messages that the owner serves, see serve.cc
};

struct RemoteKey {
  ~RemoteKey();
  std::shared_ptr<Link> link;
  std::shared_ptr<Core> rail;  // whose worker has `handle`
  ucp_rkey_h handle = nullptr;
  Path path = Path::kMessages;
  std::byte* mapped = nullptr;  // kMapped: where `base` is mapped here
  uint64_t region_id = 0;
  uint64_t base = 0;
  uint64_t size = 0;
};

struct RailAddress {
  std::string host;
  uint16_t port = 0;
};

// Of answers that one peer does not take.
inline constexpr size_t kMaxOwedBytes = 4 * kMaxQueuedBytes;
// What a message costs besides its bytes, here and in UCX.
inline constexpr size_t kMessageOverheadBytes = 1024;

// A long payload that waits to be received: of one of these two.
struct WireOp;
struct Serve;
struct LongReceive {
  WireOp* op = nullptr;
  Serve* serve = nullptr;
};

// One connection of one rail. Driver, except where noted.
struct Peer {
  std::shared_ptr<Core> core;
  std::string name;  // "host:port", for messages
  std::string host;  // numeric
  ucp_ep_h handle = nullptr;
  bool accepted = false;
  uint64_t channel = 0;         // what the peer puts into its headers
  uint64_t remote_channel = 0;  // what it expects in ours; 0 until its hello (or the answer) came
  PeerIdentity identity;        // of an accepted one
  std::weak_ptr<Link> link;     // of one that this side opened
  size_t rail = 0;
  absl::Time opened, heard, pinged, failed_at;
  absl::Time served = absl::InfinitePast();  // when one of its puts and gets last ended well
  int pings = 0;                             // since it was heard
  size_t queued_bytes = 0;                   // of messages that UCX has not sent, with kMessageOverheadBytes each
  size_t owed_bytes = 0;                     // of answers that exist, likewise
  size_t issued = 0;                         // our operations at it
  size_t serving = 0;                        // of its puts and gets, those waiting for a slot included
  size_t slots = 0;                          // that these hold
  std::deque<LongReceive> long_receives;     // not begun
  bool receiving = false;                    // a long payload
  bool refused = false;                      // an accepted one whose hello was not
  bool failed = false;                       // no new operations; waiting to be force-closed
  bool closing = false;                      // UCX was asked to close
  bool closed = false;                       // UCX has let go of every buffer
  absl::Status failure;
  // Any thread:
  std::atomic<bool> ready{false};  // hello done
  Event hello_done;
  absl::Status hello_status;  // before hello_done
};

// What an Endpoint is: the same peer over several rails.
struct Link {
  std::shared_ptr<Shared> shared;
  std::string name;
  std::string token;
  // Set by the first rail's hello:
  ContextId peer_id{};
  bool same_machine = false;
  uint16_t version = 0;
  std::vector<RailAddress> addresses;  // of the rails, the first one included

  std::mutex mutex;
  std::vector<std::shared_ptr<Peer>> rails;  // null: not connected now
  bool closed = false;
  std::atomic<int> alive{0};
  bool Has(size_t rail) const { return rail < rails.size() && rails[rail] != nullptr; }  // under the mutex
};

struct ListenerState {
  std::shared_ptr<Shared> shared;
  std::vector<ucp_listener_h> handles;  // by rail
  std::vector<std::set<int>> sockets;   // likewise
  uint16_t port = 0;
  uint64_t authenticates = 0;  // which of the context's authenticators is its
  ~ListenerState();
};

struct Message {
  MessageKind kind = MessageKind::kOneWay;
  std::shared_ptr<Peer> peer;
  absl::Time deadline = absl::InfiniteFuture();
  MessageHeader header;
  std::string bytes;
  // Driver:
  bool sent = false;         // given to UCX
  bool outstanding = false;  // UCX has not called back
  size_t queued_bytes = 0;   // its part of the peer's
  bool answered = false;
  // Before done:
  absl::Status result;
  std::string reply;
  Event done;
};

// A rail's part in a transfer. Driver.
struct RailTransfer {
  std::shared_ptr<Transfer> transfer;
  std::shared_ptr<Peer> peer;
  size_t outstanding = 0;                    // UCX requests that have not called back
  size_t unanswered = 0;                     // operations at the peer
  size_t copying = 0;                        // operations whose device copies run
  bool one_sided = false, flushing = false;  // a one-sided put needs a flush at the end
  std::vector<uint32_t> one_sided_ops;       // done when flushed
  std::unordered_map<uint64_t, std::unique_ptr<WireOp>> ops;
  bool idle() const { return outstanding == 0 && copying == 0; }
};

// One operation on its way.
struct WireOp {
  RailTransfer* owner = nullptr;
  uint64_t id = 0;
  uint32_t op = 0;
  OpHeader header;                  // UCX reads it until the send has ended
  std::vector<WirePiece> table;     // a get's payload, likewise
  std::vector<ucp_dt_iov_t> parts;  // of a put that is sent from where its pieces lie
  Slot* slot = nullptr;             // staging, where the operation is not direct
  std::vector<CopyTicket> copies;
  bool copying_in = false;     // device copies towards the destination, else from the source
  bool sending = false;        // UCX has not called back
  bool is_long = false;        // so the payload it sends is
  bool receiving = false;      // a long payload, or it waits for others
  void* descriptor = nullptr;  // of the payload while it waits
  bool answered = false;       // the peer has said its last word
};

// A peer's operation that this side carries out. Driver.
struct Serve {
  std::shared_ptr<Peer> peer;
  OpHeader request;
  bool put = false;
  std::vector<WirePiece> pieces;   // empty while the table has not arrived
  std::shared_ptr<Region> region;  // once checked
  Slot* slot = nullptr;
  bool waiting = false;        // for a slot
  void* descriptor = nullptr;  // of a long put that has not begun
  size_t descriptor_bytes = 0;
  bool straight = false;            // such a put goes to where it belongs, else through the slot
  uint32_t put_sum = 0;             // of Region::sums, while it does
  std::vector<std::byte> stash;     // of a put to a device that came with its message
  GetDataHeader header;             // UCX reads it until the send has ended
  std::vector<ucp_dt_iov_t> parts;  // of a get that is sent from where its pieces lie
  std::vector<CopyTicket> copies;
  bool outstanding = false;  // UCX has not called back
  absl::Status failure;      // of a device copy
  absl::Time since;
};

class Core : public std::enable_shared_from_this<Core> {
 public:
  static absl::StatusOr<std::shared_ptr<Core>> Create(Shared* shared, size_t rail, const std::string& device);
  ~Core();
  Core(const Core&) = delete;
  Core& operator=(const Core&) = delete;

  // Ends everything and joins the thread. Once, from Context's destructor.
  void Shutdown();

  // ---- Any thread ----

  // Runs `fn` as driver, soon. False (and fn is dropped) after shutdown.
  bool Post(std::function<void()> fn);
  // The same, and waits for it: at once where the role is free. FAILED_PRECONDITION after shutdown.
  enum class Then { kLeave, kWait };  // kWait: the caller goes on with Wait, and the rail's thread may sleep till then
  absl::Status Run(absl::FunctionRef<absl::Status()> fn, Then then = Then::kLeave);
  bool Driving() const { return driver_.load(std::memory_order_relaxed) == std::this_thread::get_id(); }
  // Waits for `event`, driving if the role is free. False when `until` comes first.
  bool Wait(const Event& event, absl::Time until);
  // Drives while the role is free and things move, until `done`. True when done.
  bool Drive(absl::FunctionRef<bool()> done, absl::Time until) {
    absl::Time moved_at;
    return Drive(done, until, &moved_at);
  }

  size_t rail() const { return rail_; }

  // ---- Driver ----

  absl::StatusOr<std::shared_ptr<Peer>> OpenPeer(const ucp_ep_params_t& params, std::string name, bool accepted);
  // Opens this rail of the link and says hello.
  absl::StatusOr<std::shared_ptr<Peer>> Greet(const std::shared_ptr<Link>& link, const sockaddr* address,
                                              socklen_t address_bytes, std::string name);
  void FailPeer(Peer* peer, absl::Status why);
  // Of an Endpoint that is gone.
  void CloseLink(const Link& link, const absl::Status& status);
  void AddTransfer(std::shared_ptr<Transfer> transfer, std::shared_ptr<Peer> peer);
  void AddMessage(std::shared_ptr<Message> message);
  void SetDirty() { dirty_ = true; }
  absl::Status Map(Region* region, bool allocate);
  absl::Status PackKey(const Region* region, std::string* ucx_key);
  // Closes the connections that have such a transfer under way. False when there are none.
  bool CutOff(absl::FunctionRef<bool(const Serve&)> such, absl::string_view why);
  void Unmap(ucp_mem_h handle);
  absl::Status UnpackKey(RemoteKey* key, Peer* peer, const void* ucx_key);
  void DestroyKey(ucp_rkey_h key);
  absl::StatusOr<std::string> Describe(Peer* peer);
  absl::StatusOr<ucp_listener_h> OpenListener(const sockaddr* address, socklen_t bytes, RailAddress* bound);
  void CloseListener(ucp_listener_h listener);
  // Any thread: lets nobody in any more, and those who are on the doorstep finish. UCX 1.13 keeps, in a connection
  // whose first bytes have not come, a pointer to the listener that it came through.
  void CloseDoors(const std::set<int>& sockets);
  std::vector<std::string> TransportNames() const;
  bool UcxKnowsDevices() const;

 private:
  explicit Core(Shared* shared, size_t rail);
  // core.cc
  absl::Status Init(const std::string& device);
  bool TryTake();
  bool Claim();
  bool Drive(absl::FunctionRef<bool()> done, absl::Time until, absl::Time* moved_at);
  void Release();
  void HandOver(bool caller_returns);
  void Wake();
  void Loop();
  bool Step();
  void Nap(int64_t nap_us);
  void Sleep();
  void Stop();
  bool RunPosted();
  void AdvanceAll();
  void CheckTime(absl::Time now);
  // peer.cc
  bool Lingers(const Peer& peer) const;
  void CloseFailedPeers();
  void KeepAlive(absl::Time now);
  void RetryRails(absl::Time now);
  void SendNote(Peer* peer, unsigned am_id, std::string header, std::string payload);
  Peer* PeerOf(uint64_t channel);
  void HelloEnded(Peer* peer, const absl::Status& status);
  // messages.cc
  bool AdvanceMessage(Message* message);
  void SendMessage(Message* message);
  static void Queue(Message* message, size_t bytes);
  void EndMessage(Message* message, absl::Status result);
  void ReceiveMessage(const MessageHeader& header, absl::string_view bytes);
  // initiator.cc
  bool AdvanceTransfer(RailTransfer* rail);  // true when the rail has let go of it
  void Issue(RailTransfer* rail);
  bool IssueOp(RailTransfer* rail, uint32_t op);
  void CopyMapped(RailTransfer* rail, uint32_t op);
  void SendCopied(RailTransfer* rail, uint32_t op);
  void IssueOneSided(RailTransfer* rail, uint32_t op);
  void SendOp(WireOp* op);
  void ReceiveGet(WireOp* op);
  void OpArrived(WireOp* op, const std::byte* data);
  void OpEnded(WireOp* op);
  void FreeOp(WireOp* op);
  bool PollCopies(std::vector<CopyTicket>& copies, absl::Status* status);
  void PollOps();
  void Requested(RailTransfer* rail, ucs_status_ptr_t request, const char* what);
  // long_payloads.cc
  bool Progress();  // ucp_worker_progress, and what its callbacks left for afterwards
  void AfterProgress(std::function<void()> fn);
  void Send(std::function<void()> send);
  void QueueReceive(const std::shared_ptr<Peer>& peer, LongReceive receive);
  void NextReceive(Peer* peer);
  absl::Status Receive(Peer* peer, void** descriptor, std::byte* to, size_t size,
                       ucp_am_recv_data_nbx_callback_t callback, void* arg);
  void ReceiveEnded(const std::shared_ptr<Peer>& peer);
  void DropReceive(Peer* peer, void** descriptor, const void* owner);
  // serve.cc
  std::unique_ptr<Serve> NewServe(const void* header, size_t header_length, bool put);
  void AddServe(std::unique_ptr<Serve> serve);
  absl::Status Check(Serve* serve);
  bool TakeServeSlot(Serve* serve);
  void RunServe(Serve* serve);
  void ReceivePut(Serve* serve);
  void SumStraight(Serve* serve);
  void Scatter(Serve* serve, const std::byte* data);
  void SendGet(Serve* serve);
  void SendData(Serve* serve);
  void SendDataNow(Serve* serve);
  void EndServe(Serve* serve, const absl::Status& status);
  void DropServe(Serve* serve);
  void PollServes(absl::Time now);

  absl::Status SetAmHandlers();
  template <void (Core::*method)(const void*, size_t, void*, size_t, const ucp_am_recv_param_t*, bool*)>
  static ucs_status_t OnAm(void* core, const void* header, size_t header_length, void* data, size_t length,
                           const ucp_am_recv_param_t* param);
  // *keep: the data's descriptor is ours now.
  void OnNothing(const void*, size_t, void*, size_t, const ucp_am_recv_param_t*, bool*) {}
  void OnHello(const void*, size_t, void*, size_t, const ucp_am_recv_param_t*, bool* keep);
  void OnHelloAnswer(const void*, size_t, void*, size_t, const ucp_am_recv_param_t*, bool* keep);
  void OnPing(const void*, size_t, void*, size_t, const ucp_am_recv_param_t*, bool* keep);
  void OnMessage(const void*, size_t, void*, size_t, const ucp_am_recv_param_t*, bool* keep);
  void OnPut(const void*, size_t, void*, size_t, const ucp_am_recv_param_t*, bool* keep);
  void OnGet(const void*, size_t, void*, size_t, const ucp_am_recv_param_t*, bool* keep);
  void OnGetData(const void*, size_t, void*, size_t, const ucp_am_recv_param_t*, bool* keep);
  void OnAnswer(const void*, size_t, void*, size_t, const ucp_am_recv_param_t*, bool* keep);
  void OnCopied(const void*, size_t, void*, size_t, const ucp_am_recv_param_t*, bool* keep);

  static void OnPeerError(void* peer, ucp_ep_h handle, ucs_status_t status);
  static void OnPeerClosed(void* request, ucs_status_t status, void* peer);
  static void OnConnectionRequest(ucp_conn_request_h request, void* core);
  static void OnMessageSent(void* request, ucs_status_t status, void* message);
  static void OnOpSent(void* request, ucs_status_t status, void* op);
  static void OnOpReceived(void* request, ucs_status_t status, size_t length, void* op);
  static void OnOneSided(void* request, ucs_status_t status, void* rail);
  static void OnServeSent(void* request, ucs_status_t status, void* serve);
  static void OnServeReceived(void* request, ucs_status_t status, size_t length, void* serve);

  Shared* const shared_;  // which owns the rails; all else that holds one holds it too
  const size_t rail_;
  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  int ucx_fd_ = -1;
  UniqueFd wake_fd_;
  std::thread thread_;

  std::mutex role_;
  std::atomic<std::thread::id> driver_{};
  Patience caller_patience_, thread_patience_;
  std::atomic<int64_t> last_driven_us_{0};  // by a caller who got what it waited for, or has moved something itself
  std::atomic<bool> thread_drives_{false};  // the rail's own
  std::atomic<bool> handed_over_{false};    // a caller has left work to it
  std::atomic<int> claims_{0};              // callers who wait for it to let go
  std::atomic<bool> sleeping_{false};

  std::mutex posted_mutex_;  // guards posted_, stopped_
  std::vector<std::function<void()>> posted_;
  bool stopped_ = false;
  std::atomic<bool> has_posted_{false};

  // Driver:
  bool stopping_ = false;
  bool dirty_ = false;  // something may be able to advance
  bool in_progress_ = false;
  size_t long_sends_ = 0;  // for which UCX has not called back
  std::vector<std::function<void()>> after_progress_;
  absl::Time last_check_, last_step_;
  absl::Time planned_wake_ = absl::InfinitePast();  // of the rail's thread, while it sleeps
  uint64_t op_secret_ = 0, next_op_ = 0;            // ids of operations and calls: not to be guessed by other peers
  uint64_t NewId();
  std::list<std::unique_ptr<RailTransfer>> transfers_;  // first started, first served
  std::list<std::shared_ptr<Message>> messages_;
  std::unordered_map<uint64_t, Message*> calls_;
  std::unordered_map<uint64_t, WireOp*> ops_;
  std::unordered_set<WireOp*> copying_ops_;
  std::unordered_map<Serve*, std::unique_ptr<Serve>> serves_;
  std::deque<Serve*> waiting_serves_;  // for a slot
  std::unordered_set<Serve*> copying_serves_;
  bool slot_freed_ = false;
  SlotPool op_slots_, serve_slots_;
  std::unordered_map<Peer*, std::shared_ptr<Peer>> peers_;
  std::unordered_map<uint64_t, Peer*> channels_;
  std::unordered_map<ucp_ep_h, Peer*> by_handle_;
  struct LostRail {
    std::weak_ptr<Link> link;
    absl::Time next_try;
    absl::Duration pause;
  };
  std::vector<LostRail> lost_rails_;
  bool any_failed_ = false;
  bool any_closed_ = false;
  std::unordered_set<ucp_rkey_h> keys_;
  std::unordered_set<ucp_listener_h> listeners_;
  std::set<int> sockets_;  // that this rail's worker listens on
};

// What the rails of one context share. Any thread.
class Shared {
 public:
  explicit Shared(const Options& options) : options(options), guard(options.guarded) {}
  ~Shared() { rails.clear(); }  // their staging buffers are the device's
  absl::Status Init();

  std::shared_ptr<Region> FindRegion(uint64_t id) const;
  bool IsDevice(const void* address) const { return options.device != nullptr && options.device->Owns(address); }
  absl::StatusOr<PeerIdentity> Authenticate(const Hello& hello) const;

  const Options options;
  PortGuard guard;
  ContextId id{};
  std::string machine;
  std::vector<std::shared_ptr<Core>> rails;
  GrantTable grants;
  Counters counters;
  std::atomic<bool> stopped{false};

  mutable std::mutex mutex;  // guards what follows
  std::unordered_map<uint64_t, std::weak_ptr<Region>> regions;
  Authenticator authenticator;  // of the newest listener, while it listens
  uint64_t authenticators = 0;
  std::vector<RailAddress> rail_addresses;  // listened on, after the first

  mutable std::mutex device_mutex;  // DeviceMemory is used by one thread at a time

  std::shared_mutex handlers_mutex;  // shared while one runs
  std::unordered_map<uint16_t, MessageHandler> handlers;
};

}  // namespace perigee::transport::internal

#endif  // PERIGEE_TRANSPORT_CORE_H_

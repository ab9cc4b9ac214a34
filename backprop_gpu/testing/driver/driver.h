// A CUDA driver that runs on the CPU: what the unmodified CUDA libraries load as libcuda.so.1.
//
//   entry_points.cpp  what a call has in common, devices, contexts, the tests' own functions
//   memory.cpp        allocations, pools, copies, faults
//   streams.cpp       streams, events, the queue and the order in which it runs
//   capture.cpp       stream capture, graphs
//   kernels.cpp       libraries, launches, occupancy
//
// Strict: what a driver may refuse is refused, with the reason as text. Late: what is submitted
// to a stream waits in `State::pending` until somebody needs it, so a wait that is missing shows.
// Early: what is launched programmatically finds its memory closed until it waits (kernels.cpp).
//
// One mutex guards everything. It is released while a kernel or a host function runs, which may
// call back into Python and so wait for a thread that holds Python's lock and wants this one.
#pragma once
#include <stdarg.h>

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "cuda_abi.h"

namespace standin {

// ----------------------------------------------------------------------------------- calls

// What a call or an operation answers when it breaks a rule.
struct Failure {
  CUresult result;
  std::string reason;
};

[[noreturn]] void fail(CUresult result, const char* format, ...)
    __attribute__((format(printf, 2, 3)));
std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));

using Lock = std::unique_lock<std::mutex>;

// What can be made to fail, and is counted. `release` is never made to fail.
enum class Counted { other, allocation, launch, copy, synchronization, release };

// Does it when the call's mutex is free: what users of the driver asked to be told.
void after_call(std::function<void()> tell);

CUresult call(const char* name, Counted counted, const std::function<void(Lock&)>& body);

// --------------------------------------------------------------------------------- objects

struct Context;
struct Executable;
struct Stream;
struct Graph;
struct Node;
struct Capture;
struct Memory;

// What a handle means. Handles are numbers that are never used again, so that one that outlived
// its object is told from a good one.
struct Object {
  Context* context = nullptr;
  void* handle = nullptr;
  bool gone = false;  // its handle was given back
  virtual ~Object() = default;
  virtual const char* word() const = 0;  // for messages
};

// T::kind is the word.
template <class T> struct Kind : Object {
  const char* word() const override { return T::kind; }
};

void* enter(std::shared_ptr<Object> object);
void leave(void* handle);
std::shared_ptr<Object> find_object(const void* handle, const char* kind);

template <class T> std::shared_ptr<T> find(const void* handle) {
  auto found = std::dynamic_pointer_cast<T>(find_object(handle, T::kind));
  if (found == nullptr)
    fail(CUDA_ERROR_INVALID_HANDLE, "%p is the handle of something else than a %s", handle,
         T::kind);
  return found;
}

// What is asked of a device, once: by a stream's operation or a graph's node.
struct Work {
  const char* what;                             // a kernel's name, or the call's
  std::vector<std::shared_ptr<Memory>> memory;  // that it may touch
  std::function<void()> run;                    // throws a Failure
  bool alone = false;                           // runs without the mutex
  std::shared_ptr<Object> uses = nullptr;       // a library that must not be unloaded
  std::shared_ptr<Executable> graph = nullptr;  // to run instead
};

// Work in a stream.
struct Operation {
  uint64_t number;  // of submission: nothing comes before what it waits for
  Context* context;
  Work work;
  std::shared_ptr<Stream> stream;
  std::vector<std::shared_ptr<Operation>> after;
  bool done = false;
  double seconds = 0;  // when it was done
  uint64_t visit = 0;
};

struct Card {
  const char* name;
  int major, minor, multiprocessors;
  int clock, memory_clock, bus_width;  // kHz, kHz, bits
  int shared_block_optin, shared_multiprocessor;
  int threads_multiprocessor, blocks_multiprocessor;
  int l2;
  size_t memory;
  int double_ratio;  // float32's rate by float64's
};

struct Pool : Kind<Pool> {
  static constexpr const char* kind = "memory pool";
  bool host = false;
  size_t used = 0, high = 0;
  uint64_t threshold = 0;
  int reuse[4] = {0, 1, 1, 1};
};

struct Stream : Kind<Stream>, std::enable_shared_from_this<Stream> {
  static constexpr const char* kind = "stream";
  bool blocking = true;  // waits for the legacy stream, and the other way round
  bool legacy = false;
  int priority = 0;
  std::shared_ptr<Operation> last;
  std::vector<std::shared_ptr<Operation>> waits;  // of the next operation
  size_t unfinished = 0;
  std::shared_ptr<Capture> capture;
  std::vector<std::shared_ptr<Node>> tail;  // what the next node comes after
};

struct Event : Kind<Event> {
  static constexpr const char* kind = "event";
  unsigned flags = 0;
  bool recorded = false;
  std::shared_ptr<Operation> operation;  // of the latest record
  std::weak_ptr<Capture> capture;
  bool captured = false;  // the latest record was
  std::vector<std::shared_ptr<Node>> nodes;
};

struct Context : Kind<Context> {
  static constexpr const char* kind = "context";
  int device = 0;
  int retained = 0;
  std::shared_ptr<Stream> legacy;
  std::shared_ptr<Pool> pool;          // the current one
  std::shared_ptr<Pool> default_pool;  // as the device came
  size_t used = 0;
  CUresult sticky = CUDA_SUCCESS;
  std::string sticky_reason;
};

struct State {
  std::mutex mutex;
  std::condition_variable changed;
  bool configured = false, initialized = false;
  int process = 0;
  const Card* card = nullptr;
  std::vector<std::unique_ptr<Context>> devices;
  std::unordered_map<uintptr_t, std::shared_ptr<Object>> objects;
  std::map<uintptr_t, std::shared_ptr<Memory>> memory;  // by address, freed ones too
  std::map<uint64_t, std::shared_ptr<Operation>> pending;
  std::set<std::shared_ptr<Capture>> captures;
  bool running = false;  // a thread runs an operation
  uint64_t submitted = 0, visits = 0;
  std::string order = "late";
  std::mt19937_64 random;
  std::string reason;
};
// Never destroyed: threads may call until the very end.
extern State& state;

Context& current();  // of the calling thread; fails without one, and after a sticky error
Context& context_of_device(int device);
void check_sticky(const Context& context);
void break_context(Context& context, const Failure& failure);

// --------------------------------------------------------------------------------- memory

struct Memory {
  uint64_t number;
  char* address;
  size_t bytes;
  Context* context;
  std::shared_ptr<Pool> pool;
  bool host = false;  // pinned
  char* begin;        // of its pages
  size_t page_bytes;
  bool open = false;        // the host may touch its pages
  bool early = false;       // but not yet: a kernel has to wait first
  bool free_asked = false;  // the call was made
  bool freed = false;       // the stream came to it
  std::string free_by;
  std::shared_ptr<Operation> made;  // stream-ordered: when it comes to life
  std::vector<std::weak_ptr<Operation>> users;
  uint64_t visit = 0;

  std::string name() const;
};

// The allocation that holds an address, freed or not; null for any other.
std::shared_ptr<Memory> memory_at(const void* address);
bool in_arena(const void* address);
// Why work may not touch it now; empty if it may.
std::string unusable(const Memory& memory, const Context* context, bool at_submission);
void open_pages(const std::vector<std::shared_ptr<Memory>>& wanted);
void close_pages();
// What a programmatic launch names is closed until its threads have waited; what is large, in the
// first of its blocks only, since closing takes its time.
void close_early(const std::vector<std::shared_ptr<Memory>>& named, bool early, bool first);
void check_guards(const std::vector<std::shared_ptr<Memory>>& memory, const char* what);
void watch_faults();
// While a kernel runs: what ends it from a fault's handler.
struct Fault {
  void* library;
};
extern Fault* faulting;
extern CUresult fault_result;

// --------------------------------------------------------------------------------- streams

std::shared_ptr<Stream> stream_of(CUstream handle);
// Appends to a stream, or to the graph that it is captured into.
std::shared_ptr<Operation> submit(Lock& lock, Stream& stream, Work work);
// Runs until it is done, with what it waits for; then fails if the context is broken.
void finish(Lock& lock, const std::shared_ptr<Operation>& wanted);
// It is done, or as good as done.
void drop(std::shared_ptr<Operation> operation);
void finish_all(Lock& lock, const Context& context);
// One after another, or one of a graph's.
void execute(Lock& lock, Context& context, const Work& work);
// For a call that waits for the host: not while a stream is captured.
void refuse_in_capture(const char* what);
size_t random_below(size_t n);

// --------------------------------------------------------------------------------- capture

struct Node : Kind<Node> {
  static constexpr const char* kind = "graph node";
  Work work;
  std::vector<std::shared_ptr<Node>> after;
};

struct UserObject : Kind<UserObject> {
  static constexpr const char* kind = "user object";
  void* pointer = nullptr;
  CUhostFn destroy = nullptr;
  int references = 0;
};

struct Graph : Kind<Graph> {
  static constexpr const char* kind = "graph";
  std::vector<std::shared_ptr<Node>> nodes;
  std::map<std::shared_ptr<UserObject>, int> owned;
  ~Graph() override;
};

struct Executable : Kind<Executable> {
  static constexpr const char* kind = "executable graph";
  std::shared_ptr<Graph> graph;  // a copy of its own
  std::vector<int> missing;      // of a node: how many it comes after
  std::vector<std::vector<int>> next;
  std::shared_ptr<Operation> last;
};

struct Capture {
  uint64_t number = 0;
  std::shared_ptr<Graph> graph;
  Stream* origin = nullptr;
  CUstreamCaptureMode mode;
  unsigned long thread;
  std::string invalid;  // why; empty while it is active
  std::set<Stream*> streams;
  std::vector<std::shared_ptr<Stream>> destroyed;  // after they were joined
};

void run_graph(Lock& lock, Context& context, const Executable& executable);
void add_node(Stream& stream, Work work);
// A stream comes after what a capture had recorded, and belongs to it from then on.
void join_capture(Stream& stream, const Event& event);
void invalidate(Capture& capture, const std::string& why);
void end_capture(Capture& capture);
[[noreturn]] void fail_capture(Capture& capture, CUresult result, const std::string& why);

}  // namespace standin

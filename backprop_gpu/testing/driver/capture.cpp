// Stream capture, and the graphs that it makes.
#include <pthread.h>
#include <string.h>

#include <algorithm>

#include "driver.h"

namespace standin {

namespace {

thread_local CUstreamCaptureMode thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

using Nodes = std::vector<std::shared_ptr<Node>>;

void add_missing(Nodes& nodes, const Nodes& more) {
  for (const auto& node : more)
    if (std::find(nodes.begin(), nodes.end(), node) == nodes.end()) nodes.push_back(node);
}

Capture& active(Stream& stream) {
  Capture& capture = *stream.capture;
  if (!capture.invalid.empty())
    fail(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "the capture was invalidated before: %s",
         capture.invalid.c_str());
  return capture;
}

void retain(Graph& graph, const std::shared_ptr<UserObject>& object, int count) {
  graph.owned[object] += count;
  object->references += count;
}

void release(const std::shared_ptr<UserObject>& object, int count) {
  object->references -= count;
  if (object->references > 0) return;
  leave(object->handle);
  after_call([destroy = object->destroy, pointer = object->pointer] { destroy(pointer); });
}

// The first node that none of `ends` comes after; null if there is none.
const Node* unjoined(const Nodes& all, const Nodes& ends) {
  std::set<const Node*> found;
  std::vector<const Node*> open;
  for (const auto& node : ends) open.push_back(node.get());
  while (!open.empty()) {
    const Node* next = open.back();
    open.pop_back();
    if (!found.insert(next).second) continue;
    for (const auto& before : next->after) open.push_back(before.get());
  }
  for (const auto& node : all)
    if (found.count(node.get()) == 0) return node.get();
  return nullptr;
}

}  // namespace

Graph::~Graph() {
  for (const auto& [object, count] : owned) release(object, count);
}

void invalidate(Capture& capture, const std::string& why) {
  if (capture.invalid.empty()) capture.invalid = why;
}

void fail_capture(Capture& capture, CUresult result, const std::string& why) {
  invalidate(capture, why);
  fail(result, "%s", why.c_str());
}

void refuse_in_capture(const char* what) {
  for (const auto& capture : state.captures) {
    const bool own = capture->thread == pthread_self();
    const bool relaxed = capture->mode == CU_STREAM_CAPTURE_MODE_RELAXED;
    const bool global = capture->mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
    if (thread_mode == CU_STREAM_CAPTURE_MODE_RELAXED) continue;
    if ((own && !relaxed) || (thread_mode == CU_STREAM_CAPTURE_MODE_GLOBAL && global))
      fail_capture(*capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                   text("%s while %s captures a stream", what,
                        own ? "this thread" : "another thread"));
  }
}

void add_node(Stream& stream, Work work) {
  Capture& capture = active(stream);
  auto node = std::make_shared<Node>();
  node->context = stream.context;
  node->work = std::move(work);
  node->after = stream.tail;
  enter(node);
  capture.graph->nodes.push_back(node);
  stream.tail = {node};
}

void join_capture(Stream& stream, const Event& event) {
  const auto capture = event.capture.lock();
  if (capture == nullptr)
    fail(CUDA_ERROR_CAPTURED_EVENT, "the event was recorded in a capture that has ended");
  if (stream.legacy)
    fail_capture(*capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                 "the legacy stream cannot be captured");
  if (stream.capture != nullptr && stream.capture != capture) {
    invalidate(*capture, "a stream of another capture waits for an event of this one");
    fail_capture(*stream.capture, CUDA_ERROR_STREAM_CAPTURE_MERGE,
                 "a captured stream waits for an event of another capture");
  }
  if (stream.capture == nullptr) {
    if (!capture->invalid.empty())
      fail(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "%s", capture->invalid.c_str());
    stream.capture = capture;
    capture->streams.insert(&stream);
    stream.tail.clear();
  }
  active(stream);
  add_missing(stream.tail, event.nodes);
}

void end_capture(Capture& capture) {
  const auto keep = capture.origin->capture;
  for (Stream* stream : capture.streams) {
    stream->capture = nullptr;
    stream->tail.clear();
  }
  capture.destroyed.clear();
  state.captures.erase(keep);
}

// A graph's nodes, in an order that its edges allow: where they leave a choice, "late" takes
// the one that was captured last.
void run_graph(Lock& lock, Context& context, const Executable& executable) {
  const Nodes& nodes = executable.graph->nodes;
  std::vector<int> missing(executable.missing);
  std::vector<int> ready;
  for (size_t i = 0; i < nodes.size(); ++i)
    if (missing[i] == 0) ready.push_back(i);
  while (!ready.empty()) {
    const size_t which = state.order == "late"     ? ready.size() - 1
                         : state.order == "others" ? 0
                                                   : random_below(ready.size());
    const int next = ready[which];
    ready.erase(ready.begin() + which);
    execute(lock, context, nodes[next]->work);
    for (int after : executable.next[next])
      if (--missing[after] == 0) ready.push_back(after);
  }
}

}  // namespace standin

using namespace standin;

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
  return call("cuThreadExchangeStreamCaptureMode", Counted::other, [&](Lock&) {
    if (mode == nullptr || *mode < 0 || *mode > 2)
      fail(CUDA_ERROR_INVALID_VALUE, "a mode is global, thread-local or relaxed");
    std::swap(*mode, thread_mode);
  });
}

EXPORT CUresult cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode) {
  return call("cuStreamBeginCapture", Counted::other, [&](Lock&) {
    const auto stream = stream_of(handle);
    if (mode < 0 || mode > 2)
      fail(CUDA_ERROR_INVALID_VALUE, "a mode is global, thread-local or relaxed");
    if (stream->legacy)
      fail(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the legacy stream cannot be captured");
    if (stream->capture != nullptr)
      fail(CUDA_ERROR_ILLEGAL_STATE, "the stream is being captured already");
    static uint64_t number = 0;
    auto capture = std::make_shared<Capture>();
    capture->number = ++number;
    capture->graph = std::make_shared<Graph>();
    capture->graph->context = stream->context;
    capture->origin = stream.get();
    capture->mode = mode;
    capture->thread = pthread_self();
    capture->streams = {stream.get()};
    enter(capture->graph);
    stream->capture = capture;
    stream->tail.clear();
    state.captures.insert(capture);
  });
}

EXPORT CUresult cuStreamEndCapture(CUstream handle, CUgraph* graph) {
  return call("cuStreamEndCapture", Counted::other, [&](Lock&) {
    const auto stream = stream_of(handle);
    const auto capture = stream->capture;
    if (capture == nullptr) fail(CUDA_ERROR_ILLEGAL_STATE, "the stream is not being captured");
    if (capture->origin != stream.get())
      fail_capture(*capture, CUDA_ERROR_STREAM_CAPTURE_UNMATCHED,
                   "the capture was begun on another stream");
    if (capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED && capture->thread != pthread_self())
      fail(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "another thread began the capture");
    if (graph != nullptr) *graph = nullptr;
    const Nodes ends = stream->tail;
    end_capture(*capture);
    if (!capture->invalid.empty()) {
      leave(capture->graph->handle);
      fail(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "the capture was invalidated before: %s",
           capture->invalid.c_str());
    }
    if (const Node* node = unjoined(capture->graph->nodes, ends)) {
      leave(capture->graph->handle);
      fail(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "%s was captured on a stream that was not joined",
           node->work.what);
    }
    if (graph != nullptr) *graph = static_cast<CUgraph>(capture->graph->handle);
  });
}

namespace {

CUstreamCaptureStatus status_of(const Stream& stream) {
  if (stream.legacy)
    for (const auto& capture : state.captures)
      for (const Stream* other : capture->streams)
        if (other->blocking && other->context == stream.context)
          fail(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
               "a stream that the legacy stream waits for is being captured");
  if (stream.capture == nullptr) return CU_STREAM_CAPTURE_STATUS_NONE;
  return stream.capture->invalid.empty() ? CU_STREAM_CAPTURE_STATUS_ACTIVE
                                         : CU_STREAM_CAPTURE_STATUS_INVALIDATED;
}

}  // namespace

EXPORT CUresult cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus* status) {
  return call("cuStreamIsCapturing", Counted::other,
              [&](Lock&) { *status = status_of(*stream_of(handle)); });
}

EXPORT CUresult cuStreamGetCaptureInfo_v3(CUstream handle, CUstreamCaptureStatus* status,
                                          uint64_t* id, CUgraph* graph,
                                          const CUgraphNode** dependencies,
                                          const CUgraphEdgeData** edges, size_t* count) {
  return call("cuStreamGetCaptureInfo", Counted::other, [&](Lock&) {
    const auto stream = stream_of(handle);
    *status = status_of(*stream);
    if (*status != CU_STREAM_CAPTURE_STATUS_ACTIVE) return;
    static thread_local std::vector<CUgraphNode> found;
    found.clear();
    for (const auto& node : stream->tail) found.push_back(static_cast<CUgraphNode>(node->handle));
    if (id != nullptr) *id = stream->capture->number;
    if (graph != nullptr) *graph = static_cast<CUgraph>(stream->capture->graph->handle);
    if (dependencies != nullptr) *dependencies = found.data();
    if (edges != nullptr) *edges = nullptr;
    if (count != nullptr) *count = found.size();
  });
}

EXPORT CUresult cuStreamGetCaptureInfo_v2(CUstream handle, CUstreamCaptureStatus* status,
                                          uint64_t* id, CUgraph* graph,
                                          const CUgraphNode** dependencies, size_t* count) {
  return cuStreamGetCaptureInfo_v3(handle, status, id, graph, dependencies, nullptr, count);
}

EXPORT CUresult cuStreamUpdateCaptureDependencies_v2(CUstream handle, CUgraphNode* dependencies,
                                                     const CUgraphEdgeData*, size_t count,
                                                     unsigned flags) {
  return call("cuStreamUpdateCaptureDependencies", Counted::other, [&](Lock&) {
    const auto stream = stream_of(handle);
    if (stream->capture == nullptr)
      fail(CUDA_ERROR_ILLEGAL_STATE, "the stream is not being captured");
    active(*stream);
    Nodes nodes;
    for (size_t i = 0; i < count; ++i) nodes.push_back(find<Node>(dependencies[i]));
    if (flags == 1) stream->tail.clear();
    add_missing(stream->tail, nodes);
  });
}

EXPORT CUresult cuStreamUpdateCaptureDependencies(CUstream handle, CUgraphNode* dependencies,
                                                  size_t count, unsigned flags) {
  return cuStreamUpdateCaptureDependencies_v2(handle, dependencies, nullptr, count, flags);
}

// ---------------------------------------------------------------------------------- graphs

EXPORT CUresult cuGraphDestroy(CUgraph handle) {
  return call("cuGraphDestroy", Counted::release, [&](Lock&) {
    const auto graph = find<Graph>(handle);
    for (const auto& capture : state.captures)
      if (capture->graph == graph)
        fail(CUDA_ERROR_INVALID_VALUE, "the graph is being captured");
    for (const auto& node : graph->nodes) leave(node->handle);
    leave(handle);
  });
}

EXPORT CUresult cuGraphGetNodes(CUgraph handle, CUgraphNode* nodes, size_t* count) {
  return call("cuGraphGetNodes", Counted::other, [&](Lock&) {
    const auto graph = find<Graph>(handle);
    const size_t room = nodes == nullptr ? 0 : std::min(*count, graph->nodes.size());
    for (size_t i = 0; i < room; ++i)
      nodes[i] = static_cast<CUgraphNode>(graph->nodes[i]->handle);
    *count = nodes == nullptr ? graph->nodes.size() : room;
  });
}

EXPORT CUresult cuGraphInstantiateWithParams(CUgraphExec* out, CUgraph handle,
                                             CUDA_GRAPH_INSTANTIATE_PARAMS* parameters) {
  return call("cuGraphInstantiate", Counted::other, [&](Lock&) {
    const auto graph = find<Graph>(handle);
    check_sticky(*graph->context);
    for (const auto& capture : state.captures)
      if (capture->graph == graph)
        fail(CUDA_ERROR_INVALID_VALUE, "the graph is still being captured");
    auto executable = std::make_shared<Executable>();
    executable->context = graph->context;
    executable->graph = std::make_shared<Graph>();
    executable->graph->nodes = graph->nodes;
    for (const auto& [object, count] : graph->owned) retain(*executable->graph, object, 1);
    std::map<const Node*, int> place;
    executable->next.resize(graph->nodes.size());
    for (const auto& node : graph->nodes) {
      const int here = place.size();
      place[node.get()] = here;
      executable->missing.push_back(node->after.size());
      for (const auto& before : node->after)
        executable->next[place.at(before.get())].push_back(here);
    }
    *out = static_cast<CUgraphExec>(enter(executable));
    if (parameters != nullptr) {
      parameters->hErrNode_out = nullptr;
      parameters->result_out = 0;
    }
  });
}

EXPORT CUresult cuGraphInstantiateWithFlags(CUgraphExec* out, CUgraph graph,
                                            unsigned long long) {
  return cuGraphInstantiateWithParams(out, graph, nullptr);
}

EXPORT CUresult cuGraphExecDestroy(CUgraphExec handle) {
  return call("cuGraphExecDestroy", Counted::release, [&](Lock&) {
    const auto executable = find<Executable>(handle);
    leave(handle);
    check_sticky(*executable->context);
  });
}

EXPORT CUresult cuGraphUpload(CUgraphExec handle, CUstream stream) {
  return call("cuGraphUpload", Counted::other, [&](Lock&) {
    find<Executable>(handle);
    stream_of(stream);
  });
}

EXPORT CUresult cuGraphLaunch(CUgraphExec handle, CUstream stream_handle) {
  return call("cuGraphLaunch", Counted::launch, [&](Lock& lock) {
    const auto executable = find<Executable>(handle);
    const auto stream = stream_of(stream_handle);
    if (executable->context != stream->context)
      fail(CUDA_ERROR_INVALID_VALUE, "the graph is device %d's, the stream device %d's",
           executable->context->device, stream->context->device);
    for (const auto& node : executable->graph->nodes) {
      const Object* library = node->work.uses.get();
      if (library != nullptr && library->gone)
        fail(CUDA_ERROR_INVALID_HANDLE, "the library of the graph's %s was unloaded",
             node->work.what);
    }
    Work work{"cuGraphLaunch", {}, {}};
    work.graph = executable;
    for (const auto& node : executable->graph->nodes)
      for (const auto& memory : node->work.memory) {
        const std::string why = unusable(*memory, nullptr, true);
        if (why.empty()) continue;
        const Failure failure{CUDA_ERROR_ILLEGAL_ADDRESS,
                              text("a graph's %s: %s", node->work.what, why.c_str())};
        work = {node->work.what, {}, [failure] { throw failure; }};
      }
    const auto operation = submit(lock, *stream, std::move(work));
    if (operation == nullptr) return;
    if (executable->last != nullptr && !executable->last->done)
      operation->after.push_back(executable->last);
    executable->last = operation;
  });
}

// ---------------------------------------------------------------------------- user objects

EXPORT CUresult cuUserObjectCreate(CUuserObject* out, void* pointer, CUhostFn destroy,
                                   unsigned references, unsigned flags) {
  return call("cuUserObjectCreate", Counted::other, [&](Lock&) {
    if (destroy == nullptr || references == 0 || flags != 1)
      fail(CUDA_ERROR_INVALID_VALUE, "no destructor, no reference, or flags other than 1");
    auto object = std::make_shared<UserObject>();
    object->pointer = pointer;
    object->destroy = destroy;
    object->references = references;
    *out = static_cast<CUuserObject>(enter(object));
  });
}

EXPORT CUresult cuUserObjectRetain(CUuserObject handle, unsigned count) {
  return call("cuUserObjectRetain", Counted::other,
              [&](Lock&) { find<UserObject>(handle)->references += count; });
}

EXPORT CUresult cuUserObjectRelease(CUuserObject handle, unsigned count) {
  return call("cuUserObjectRelease", Counted::release,
              [&](Lock&) { release(find<UserObject>(handle), count); });
}

EXPORT CUresult cuGraphRetainUserObject(CUgraph handle, CUuserObject object, unsigned count,
                                        unsigned flags) {
  return call("cuGraphRetainUserObject", Counted::other, [&](Lock&) {
    const auto found = find<UserObject>(object);
    retain(*find<Graph>(handle), found, count);
    constexpr unsigned move = 1;
    if (flags == move) release(found, count);
  });
}

EXPORT CUresult cuGraphReleaseUserObject(CUgraph handle, CUuserObject object, unsigned count) {
  return call("cuGraphReleaseUserObject", Counted::release, [&](Lock&) {
    const auto graph = find<Graph>(handle);
    const auto found = find<UserObject>(object);
    const int owned = graph->owned.count(found) ? graph->owned[found] : 0;
    if (int(count) > owned) fail(CUDA_ERROR_INVALID_VALUE, "the graph holds %d of it", owned);
    if ((graph->owned[found] -= count) == 0) graph->owned.erase(found);
    release(found, count);
  });
}

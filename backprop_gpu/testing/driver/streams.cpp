// The queue. An operation waits in it until somebody needs it. Then run, by State::order,
//   "late"    only what that one waits for: what nothing makes it wait for stays undone;
//   "others"  first everything that does not wait for it, then it;
//   "random"  any that can run, until it is done.
// What an operation waits for was submitted before it, so the lowest number can always run.
#include <string.h>
#include <time.h>

#include <algorithm>

#include "driver.h"

// ThreadSanitizer does not follow the mutex of a library that it did not instrument. What runs, runs
// after what ran before, whichever threads ran it.
#ifdef CUDA_HOST_TSAN
extern "C" void __tsan_acquire(void* clock);
extern "C" void __tsan_release(void* clock);
#else
static void __tsan_acquire(void*) {}
static void __tsan_release(void*) {}
#endif

namespace standin {

namespace {

char clock_of_runs;
constexpr size_t longest_queue = 1024;  // of a stream: then the host waits, as on a device

double now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec + 1e-9 * time.tv_nsec;
}

using Operations = std::vector<std::shared_ptr<Operation>>;

// What it waits for, at any distance, and itself; the first comes first.
Operations needed_by(const std::shared_ptr<Operation>& last) {
  const uint64_t visit = ++state.visits;
  Operations found{last};
  last->visit = visit;
  for (size_t i = 0; i < found.size(); ++i) {
    const std::vector<std::shared_ptr<Operation>> before = found[i]->after;
    for (const auto& operation : before)
      if (!operation->done && operation->visit != visit) {
        operation->visit = visit;
        found.push_back(operation);
      }
  }
  std::sort(found.begin(), found.end(),
            [](const auto& a, const auto& b) { return a->number < b->number; });
  return found;
}

bool can_run(const Operation& operation) {
  return std::all_of(operation.after.begin(), operation.after.end(),
                     [](const auto& before) { return before->done; });
}

void run(Lock& lock, std::shared_ptr<Operation> operation) {
  Context& context = *operation->context;
  if (context.sticky == CUDA_SUCCESS) {
    try {
      execute(lock, context, operation->work);
    } catch (const Failure& failure) {
      break_context(context, failure);
    }
  }
  drop(std::move(operation));
}

// As many as one turn of the runner takes; the others of `wanted` that are done are left out.
void run_turn(Lock& lock, const std::shared_ptr<Operation>& wanted) {
  if (state.order == "random") {
    Operations ready;
    for (const auto& [number, operation] : state.pending)
      if (can_run(*operation)) ready.push_back(operation);
    run(lock, ready[random_below(ready.size())]);
    return;
  }
  const Operations needed = needed_by(wanted);
  if (state.order == "others") {
    const uint64_t visit = wanted->visit;
    Operations all;
    for (const auto& [number, operation] : state.pending) all.push_back(operation);
    for (const auto& operation : all)
      if (operation->visit != visit && !operation->done && can_run(*operation))
        run(lock, operation);
  }
  for (const auto& operation : needed)
    if (!operation->done) run(lock, operation);
}

thread_local std::shared_ptr<Stream> per_thread[8];

}  // namespace

void drop(std::shared_ptr<Operation> operation) {
  operation->done = true;
  operation->seconds = now();
  operation->after.clear();
  operation->work = {operation->work.what, {}, {}};
  --operation->stream->unfinished;
  operation->stream = nullptr;
  state.pending.erase(operation->number);
}

size_t random_below(size_t n) { return state.random() % n; }

void execute(Lock& lock, Context& context, const Work& work) {
  if (work.graph != nullptr) {
    run_graph(lock, context, *work.graph);
    return;
  }
  for (const auto& memory : work.memory) {
    const std::string why = unusable(*memory, nullptr, false);
    if (!why.empty()) fail(CUDA_ERROR_ILLEGAL_ADDRESS, "%s: %s", work.what, why.c_str());
  }
  open_pages(work.memory);
  if (!work.run) return;
  if (!work.alone) {
    work.run();
  } else {
    lock.unlock();
    __tsan_acquire(&clock_of_runs);
    try {
      work.run();
    } catch (...) {
      __tsan_release(&clock_of_runs);
      lock.lock();
      throw;
    }
    __tsan_release(&clock_of_runs);
    lock.lock();
  }
  check_guards(work.memory, work.what);
}

void finish(Lock& lock, const std::shared_ptr<Operation>& wanted) {
  while (!wanted->done) {
    if (state.running) {
      state.changed.wait(lock);
      continue;
    }
    state.running = true;
    try {
      run_turn(lock, wanted);
      close_pages();
    } catch (...) {
      state.running = false;
      throw;
    }
    state.running = false;
    state.changed.notify_all();
  }
  check_sticky(*wanted->context);
}

void finish_all(Lock& lock, const Context& context) {
  for (;;) {
    std::shared_ptr<Operation> next;
    for (const auto& [number, operation] : state.pending)
      if (operation->context == &context) next = operation;
    if (next == nullptr) break;
    finish(lock, next);
  }
  check_sticky(context);
}

std::shared_ptr<Stream> stream_of(CUstream handle) {
  const auto number = reinterpret_cast<uintptr_t>(handle);
  if (number > 2) {
    const auto stream = find<Stream>(handle);
    check_sticky(*stream->context);
    return stream;
  }
  Context& context = current();
  if (number < 2) return context.legacy;
  auto& stream = per_thread[context.device];
  if (stream == nullptr) {
    stream = std::make_shared<Stream>();
    stream->context = &context;
  }
  return stream;
}

std::shared_ptr<Operation> submit(Lock& lock, Stream& stream, Work work) {
  if (stream.capture != nullptr) {
    add_node(stream, std::move(work));
    return nullptr;
  }
  Context& context = *stream.context;
  if (stream.legacy)
    for (const auto& capture : state.captures)
      for (const Stream* other : capture->streams)
        if (other->blocking && other->context == &context)
          fail_capture(*capture, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
                       text("%s on the legacy stream would wait for a stream that is captured",
                            work.what));
  if (stream.unfinished >= longest_queue)
    for (const auto& [number, operation] : state.pending)
      if (operation->stream.get() == &stream) {
        finish(lock, std::shared_ptr<Operation>(operation));
        break;
      }
  auto operation = std::make_shared<Operation>();
  operation->number = ++state.submitted;
  operation->context = &context;
  operation->work = std::move(work);
  operation->after = std::move(stream.waits);
  stream.waits.clear();
  auto wait_for = [&](const Stream& other) {
    if (other.last != nullptr && !other.last->done) operation->after.push_back(other.last);
  };
  wait_for(stream);
  if (stream.legacy) {
    for (const auto& [handle, object] : state.objects)
      if (const auto* other = dynamic_cast<Stream*>(object.get());
          other != nullptr && other->blocking && other->context == &context)
        wait_for(*other);
  } else if (stream.blocking) {
    wait_for(*context.legacy);
  }
  auto use = [&](const Work& some) {
    for (const auto& memory : some.memory) {
      auto& users = memory->users;
      if (!users.empty() && users.back().lock() == operation) continue;
      const bool finished = [&] {
        const auto last = users.empty() ? nullptr : users.back().lock();
        return last == nullptr || last->done;
      }();
      if (finished || users.size() >= 64)
        users.erase(std::remove_if(users.begin(), users.end(),
                                   [](const auto& user) {
                                     const auto found = user.lock();
                                     return found == nullptr || found->done;
                                   }),
                    users.end());
      users.push_back(operation);
    }
  };
  use(operation->work);
  if (operation->work.graph != nullptr)
    for (const auto& node : operation->work.graph->graph->nodes) use(node->work);
  operation->stream = stream.shared_from_this();
  ++stream.unfinished;
  stream.last = operation;
  state.pending[operation->number] = operation;
  return operation;
}

}  // namespace standin

using namespace standin;

#define EXPORT extern "C" __attribute__((visibility("default")))

// --------------------------------------------------------------------------------- streams

EXPORT CUresult cuStreamCreateWithPriority(CUstream* out, unsigned flags, int priority) {
  return call("cuStreamCreateWithPriority", Counted::other, [&](Lock&) {
    Context& context = current();
    if (flags > CU_STREAM_NON_BLOCKING)
      fail(CUDA_ERROR_INVALID_VALUE, "flags are 0 or CU_STREAM_NON_BLOCKING, not %u", flags);
    auto stream = std::make_shared<Stream>();
    stream->context = &context;
    stream->blocking = flags == 0;
    stream->priority = std::clamp(priority, -5, 0);
    *out = static_cast<CUstream>(enter(stream));
  });
}

EXPORT CUresult cuStreamCreate(CUstream* out, unsigned flags) {
  return cuStreamCreateWithPriority(out, flags, 0);
}

// What was submitted runs all the same.
EXPORT CUresult cuStreamDestroy_v2(CUstream handle) {
  return call("cuStreamDestroy", Counted::release, [&](Lock&) {
    const auto stream = find<Stream>(handle);
    if (stream->capture != nullptr && stream->capture->origin == stream.get()) {
      invalidate(*stream->capture, "the stream that began it was destroyed");
      end_capture(*stream->capture);
    } else if (stream->capture != nullptr) {
      stream->capture->destroyed.push_back(stream);
    }
    leave(handle);
    check_sticky(*stream->context);
  });
}

EXPORT CUresult cuStreamSynchronize(CUstream handle) {
  return call("cuStreamSynchronize", Counted::synchronization, [&](Lock& lock) {
    const auto stream = stream_of(handle);
    if (stream->capture != nullptr)
      fail_capture(*stream->capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                   "the stream is being captured");
    if (stream->legacy) submit(lock, *stream, {"cuStreamSynchronize", {}, {}});
    const Operations waits = stream->waits;  // a wait with nothing behind it counts, too
    for (const auto& wait : waits) finish(lock, wait);
    if (stream->last != nullptr) finish(lock, std::shared_ptr<Operation>(stream->last));
    check_sticky(*stream->context);
  });
}

// The first answer is never that it is done: a program must be ready for that.
EXPORT CUresult cuStreamQuery(CUstream handle) {
  return call("cuStreamQuery", Counted::synchronization, [&](Lock& lock) {
    const auto stream = stream_of(handle);
    if (stream->capture != nullptr)
      fail_capture(*stream->capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                   "the stream is being captured");
    if (stream->last == nullptr || stream->last->done) return;
    if (!state.running) finish(lock, std::shared_ptr<Operation>(stream->last));
    fail(CUDA_ERROR_NOT_READY, "the stream's work is not done");
  });
}

EXPORT CUresult cuStreamWaitEvent(CUstream handle, CUevent event_handle, unsigned flags) {
  return call("cuStreamWaitEvent", Counted::other, [&](Lock&) {
    const auto stream = stream_of(handle);
    const auto event = find<Event>(event_handle);
    if (flags > 1) fail(CUDA_ERROR_INVALID_VALUE, "flags are 0, not %u", flags);
    if (event->captured) {
      join_capture(*stream, *event);
    } else if (stream->capture != nullptr) {
      if (event->recorded)
        fail_capture(*stream->capture, CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
                     "a captured stream waits for an event that was recorded outside");
    } else if (event->operation != nullptr && !event->operation->done) {
      stream->waits.push_back(event->operation);
    }
  });
}

EXPORT CUresult cuStreamGetPriority(CUstream handle, int* priority) {
  return call("cuStreamGetPriority", Counted::other,
              [&](Lock&) { *priority = stream_of(handle)->priority; });
}

EXPORT CUresult cuStreamGetFlags(CUstream handle, unsigned* flags) {
  return call("cuStreamGetFlags", Counted::other,
              [&](Lock&) { *flags = stream_of(handle)->blocking ? 0u : unsigned(CU_STREAM_NON_BLOCKING); });
}

EXPORT CUresult cuStreamGetCtx(CUstream handle, CUcontext* context) {
  return call("cuStreamGetCtx", Counted::other, [&](Lock&) {
    *context = static_cast<CUcontext>(stream_of(handle)->context->handle);
  });
}

EXPORT CUresult cuStreamGetDevice(CUstream handle, CUdevice* device) {
  return call("cuStreamGetDevice", Counted::other,
              [&](Lock&) { *device = stream_of(handle)->context->device; });
}

EXPORT CUresult cuStreamGetId(CUstream handle, unsigned long long* id) {
  return call("cuStreamGetId", Counted::other,
              [&](Lock&) { *id = reinterpret_cast<uintptr_t>(stream_of(handle)->handle); });
}

EXPORT CUresult cuLaunchHostFunc(CUstream handle, CUhostFn function, void* data) {
  return call("cuLaunchHostFunc", Counted::launch, [&](Lock& lock) {
    if (function == nullptr) fail(CUDA_ERROR_INVALID_VALUE, "the function is null");
    submit(lock, *stream_of(handle), {"cuLaunchHostFunc", {}, [=] { function(data); }, true});
  });
}

// ---------------------------------------------------------------------------------- events

EXPORT CUresult cuEventCreate(CUevent* out, unsigned flags) {
  return call("cuEventCreate", Counted::other, [&](Lock&) {
    Context& context = current();
    if (flags > 7) fail(CUDA_ERROR_INVALID_VALUE, "there are no flags %u", flags);
    if (flags & CU_EVENT_INTERPROCESS)
      fail(CUDA_ERROR_NOT_SUPPORTED, "the stand-in shares no events between processes");
    auto event = std::make_shared<Event>();
    event->context = &context;
    event->flags = flags;
    *out = static_cast<CUevent>(enter(event));
  });
}

EXPORT CUresult cuEventDestroy_v2(CUevent handle) {
  return call("cuEventDestroy", Counted::release, [&](Lock&) {
    const auto event = find<Event>(handle);
    leave(handle);
    check_sticky(*event->context);
  });
}

EXPORT CUresult cuEventRecord(CUevent handle, CUstream stream_handle) {
  return call("cuEventRecord", Counted::other, [&](Lock& lock) {
    const auto event = find<Event>(handle);
    const auto stream = stream_of(stream_handle);
    if (event->context != stream->context)
      fail(CUDA_ERROR_INVALID_HANDLE, "the event is device %d's, the stream device %d's",
           event->context->device, stream->context->device);
    event->captured = stream->capture != nullptr;
    if (event->captured) {
      if (!stream->capture->invalid.empty())
        fail(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "%s", stream->capture->invalid.c_str());
      event->capture = stream->capture;
      event->nodes = stream->tail;
      event->operation = nullptr;
    } else {
      event->operation = submit(lock, *stream, {"cuEventRecord", {}, {}});
    }
    event->recorded = true;
  });
}

EXPORT CUresult cuEventRecordWithFlags(CUevent handle, CUstream stream, unsigned flags) {
  if (flags == 0) return cuEventRecord(handle, stream);
  return call("cuEventRecordWithFlags", Counted::other, [&](Lock&) {
    fail(CUDA_ERROR_NOT_SUPPORTED, "the stand-in has no event nodes");
  });
}

namespace {

std::shared_ptr<Event> readable(CUevent handle) {
  const auto event = find<Event>(handle);
  check_sticky(*event->context);
  if (event->captured) {
    const auto capture = event->capture.lock();
    const char* why = "the event was recorded in a capture: it never happens";
    if (capture != nullptr) invalidate(*capture, why);
    fail(CUDA_ERROR_CAPTURED_EVENT, "%s", why);
  }
  return event;
}

}  // namespace

EXPORT CUresult cuEventSynchronize(CUevent handle) {
  return call("cuEventSynchronize", Counted::synchronization, [&](Lock& lock) {
    const auto event = readable(handle);
    if (event->operation != nullptr) finish(lock, std::shared_ptr<Operation>(event->operation));
  });
}

EXPORT CUresult cuEventQuery(CUevent handle) {
  return call("cuEventQuery", Counted::synchronization, [&](Lock& lock) {
    const auto event = readable(handle);
    if (event->operation == nullptr || event->operation->done) return;
    if (!state.running) finish(lock, std::shared_ptr<Operation>(event->operation));
    fail(CUDA_ERROR_NOT_READY, "what came before the event is not done");
  });
}

EXPORT CUresult cuEventElapsedTime_v2(float* milliseconds, CUevent start, CUevent end) {
  return call("cuEventElapsedTime", Counted::other, [&](Lock&) {
    const auto first = readable(start), last = readable(end);
    for (const auto& event : {first, last}) {
      if (event->flags & CU_EVENT_DISABLE_TIMING)
        fail(CUDA_ERROR_INVALID_HANDLE, "an event was made without timing");
      if (event->operation == nullptr)
        fail(CUDA_ERROR_INVALID_HANDLE, "an event was not recorded");
      if (!event->operation->done) fail(CUDA_ERROR_NOT_READY, "an event has not happened yet");
    }
    *milliseconds = float(1e3 * (last->operation->seconds - first->operation->seconds));
  });
}

EXPORT CUresult cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
  return cuEventElapsedTime_v2(milliseconds, start, end);
}

// Streams and events. In which order the work of several streams runs is chosen against the program (state.h,
// Schedule), so that a missing wait shows.
#include <algorithm>
#include <chrono>
#include <cstdlib>

#include "state.h"

namespace cs_emu {

int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

Stream *find_stream(void *handle) {
  State &s = state();
  if (!handle || handle == reinterpret_cast<void *>(1)) return &s.legacy;
  if (handle == reinterpret_cast<void *>(2)) return &s.per_thread;
  auto it = s.streams.find(static_cast<Stream *>(handle));
  return it == s.streams.end() ? nullptr : it->first;
}

int fail_work(int status, const std::string &text) {
  State &s = state();
  if (!s.lost) {
    s.lost = status;
    s.error_text = text;
  }
  return status;
}

namespace {

bool may_run(const Stream *stream) {
  return !stream->queue.empty() && (!stream->queue.front().source ||
                                    stream->queue.front().source->done >= stream->queue.front().position);
}

void step(Stream *stream) {
  Node node = std::move(stream->queue.front());
  stream->queue.pop_front();
  ++stream->done;
  if (node.run && !state().lost) node.run();  // after a failure the device does nothing more
}

uint64_t draw(uint64_t n) {
  uint64_t &x = state().draws;
  x ^= x << 13, x ^= x >> 7, x ^= x << 17;
  return x % n;
}

// Work that nothing waits for yet, as far as the schedule runs it now.
void run_ahead() {
  State &s = state();
  if (s.schedule == Schedule::late) return;
  if (s.schedule == Schedule::any) {
    for (uint64_t steps = draw(s.racing.size() + 1); steps; --steps) {
      Stream *stream = s.racing[draw(s.racing.size())];
      if (may_run(stream)) step(stream);
    }
    return;
  }
  const Kind held = s.schedule == Schedule::kernels_late   ? Kind::work
                    : s.schedule == Schedule::uploads_late ? Kind::upload
                                                           : Kind::download;
  const bool hold = s.schedule != Schedule::early;
  for (bool more = true; more;) {
    more = false;
    for (Stream *stream : s.racing)
      while (may_run(stream) && !(hold && stream->queue.front().kind == held)) step(stream), more = true;
  }
}

}  // namespace

void advance(Stream *stream, uint64_t position) {
  while (stream->done < position && !stream->queue.empty()) {
    run_ahead();
    if (stream->done >= position || stream->queue.empty()) break;
    const Node &next = stream->queue.front();
    if (next.source && next.source->done < next.position) advance(next.source, next.position);
    else step(stream);
  }
}

void drain(bool blocking_only) {
  State &s = state();
  advance(&s.per_thread, s.per_thread.enqueued);
  for (auto &entry : s.streams)
    if (!blocking_only || !entry.first->non_blocking) advance(entry.first, entry.first->enqueued);
}

void invalidate(Capture &capture) { capture.invalid = true; }

int unsafe_in_capture() {
  // A global capture forbids such calls to everybody, a thread-local one to its own thread, a relaxed one to nobody.
  for (auto &capture : state().captures) {
    if (capture->mode == 0 || (capture->mode == 1 && capture->thread == std::this_thread::get_id())) {
      invalidate(*capture);
      return capture_unsupported;
    }
  }
  return ok;
}

int sync_guard(Stream *stream) {
  if (stream->capture) {
    invalidate(*stream->capture);
    return capture_unsupported;
  }
  if (stream == &state().legacy) {
    for (auto &capture : state().captures)
      for (auto &entry : capture->streams)
        if (!entry.first->non_blocking) {
          invalidate(*capture);
          return capture_implicit;
        }
  }
  return ok;
}

int enqueue(Stream *stream, Node node) {
  State &s = state();
  if (stream->capture) {
    Capture &capture = *stream->capture;
    if (capture.invalid) return capture_invalidated;
    capture.nodes.push_back(std::move(node));
    ++capture.streams[stream][stream];
    return ok;
  }
  if (stream == &s.legacy) {
    const int status = sync_guard(stream);
    if (status) return status;
    drain(true);
    ++stream->enqueued;
    ++stream->done;
    if (node.source) advance(node.source, node.position);
    else if (!s.lost) node.run();
    return ok;
  }
  stream->queue.push_back(std::move(node));
  ++stream->enqueued;
  if (s.eager) advance(stream, stream->enqueued);
  else run_ahead();
  return ok;
}

namespace {

Event *find_event(void *handle) {
  auto it = state().events.find(static_cast<Event *>(handle));
  return it == state().events.end() ? nullptr : it->first;
}

void stamp(Event *event) {
  if (!state().events.count(event)) return;  // destroyed meanwhile
  event->nanoseconds = now();
  event->has_time = true;
}

int record(Event *event, Stream *stream, bool external) {
  if (stream->capture && !external) {
    if (stream->capture->invalid) return capture_invalidated;
    event->capture = stream->capture;
    event->clock = stream->capture->streams[stream];
    event->has_time = false;
    return ok;
  }
  if (!stream->capture) {
    event->capture = nullptr;
    event->has_time = false;
  }
  Node node{"event record", [event] { stamp(event); return 0; }, external ? event : nullptr, Kind::mark};
  const bool captured = stream->capture != nullptr;
  if (!captured) {
    event->stream = stream;
    event->position = stream->enqueued + 1;
  }
  return enqueue(stream, std::move(node));
}

}  // namespace
}  // namespace cs_emu

using namespace cs_emu;

EXPORT CUresult cuStreamCreate(void **out, unsigned flags) {
  ENTER;
  if (!out || flags > 1) return invalid_value;
  auto stream = std::make_unique<Stream>();
  stream->non_blocking = flags & 1;
  *out = stream.get();
  state().racing.push_back(stream.get());
  state().streams[stream.get()] = std::move(stream);
  return ok;
}

EXPORT CUresult cuStreamCreateWithPriority(void **out, unsigned flags, int) { return cuStreamCreate(out, flags); }

EXPORT CUresult cuStreamDestroy_v2(void *handle) {
  ENTER_TO_END;
  Stream *stream = find_stream(handle);
  if (!stream || stream == &state().legacy || stream == &state().per_thread) return invalid_handle;
  if (stream->capture) {
    invalidate(*stream->capture);
    stream->capture->streams.erase(stream);
  }
  advance(stream, stream->enqueued);
  for (auto &entry : state().events)
    if (entry.first->stream == stream) {  // all done
      entry.first->stream = &state().legacy;
      entry.first->position = 0;
    }
  for (auto &entry : state().streams)
    for (Node &node : entry.first->queue)
      if (node.source == stream) node.source = nullptr;
  auto &racing = state().racing;
  racing.erase(std::remove(racing.begin(), racing.end(), stream), racing.end());
  state().streams.erase(stream);
  return ended(ok);
}

EXPORT CUresult cuStreamSynchronize(void *handle) {
  ENTER;
  Stream *stream = find_stream(handle);
  if (!stream) return invalid_handle;
  const int status = sync_guard(stream);
  if (status) return status;
  if (stream == &state().legacy) drain(true);
  advance(stream, stream->enqueued);
  return state().lost;
}

EXPORT CUresult cuStreamQuery(void *handle) {
  ENTER;
  Stream *stream = find_stream(handle);
  if (!stream) return invalid_handle;
  const int status = sync_guard(stream);
  if (status) return status;
  if (stream->done == stream->enqueued) return state().lost;
  advance(stream, stream->done + 1);  // time passes
  return not_ready;
}

EXPORT CUresult cuStreamWaitEvent(void *handle, void *event_handle, unsigned) {
  ENTER;
  Stream *stream = find_stream(handle);
  Event *event = find_event(event_handle);
  if (!stream || !event) return invalid_handle;
  if (event->capture && event->capture->active) {
    std::shared_ptr<Capture> capture = event->capture;
    if (capture->invalid) return capture_invalidated;
    if (stream->capture && stream->capture != capture) {
      invalidate(*capture);
      invalidate(*stream->capture);
      return capture_merge;
    }
    if (stream == &state().legacy) {
      invalidate(*capture);
      return capture_implicit;
    }
    stream->capture = capture;  // a fork, or a join
    Clock &clock = capture->streams[stream];
    for (auto &entry : event->clock)
      if (clock[entry.first] < entry.second) clock[entry.first] = entry.second;
    return ok;
  }
  if (event->capture) return captured_event;
  if (stream->capture) {  // waits for work outside the capture
    invalidate(*stream->capture);
    return capture_isolation;
  }
  if (!event->stream) return ok;
  Stream *source = event->stream;
  const uint64_t position = event->position;
  if (source == stream) return ok;
  return enqueue(stream, Node{"wait for an event", nullptr, nullptr, Kind::mark, source, position});
}

EXPORT CUresult cuEventCreate(void **out, unsigned flags) {
  ENTER;
  if (!out) return invalid_value;
  auto event = std::make_unique<Event>();
  event->timing = !(flags & 2);
  *out = event.get();
  state().events[event.get()] = std::move(event);
  return ok;
}

EXPORT CUresult cuEventDestroy_v2(void *handle) {
  ENTER_TO_END;
  Event *event = find_event(handle);
  if (!event) return invalid_handle;
  state().events.erase(event);
  return ended(ok);
}

EXPORT CUresult cuEventRecordWithFlags(void *handle, void *stream_handle, unsigned flags) {
  ENTER;
  Event *event = find_event(handle);
  Stream *stream = find_stream(stream_handle);
  if (!event || !stream) return invalid_handle;
  if (flags > 1) return invalid_value;
  return record(event, stream, flags == 1);
}

EXPORT CUresult cuEventRecord(void *handle, void *stream_handle) {
  return cuEventRecordWithFlags(handle, stream_handle, 0);
}

EXPORT CUresult cuEventSynchronize(void *handle) {
  ENTER;
  Event *event = find_event(handle);
  if (!event) return invalid_handle;
  if (event->capture) {
    if (event->capture->active) invalidate(*event->capture);
    return captured_event;
  }
  if (event->stream) advance(event->stream, event->position);
  return state().lost;
}

EXPORT CUresult cuEventQuery(void *handle) {
  ENTER;
  Event *event = find_event(handle);
  if (!event) return invalid_handle;
  if (event->capture) {
    if (event->capture->active) invalidate(*event->capture);
    return captured_event;
  }
  if (!event->stream || event->stream->done >= event->position) return state().lost;
  advance(event->stream, event->stream->done + 1);
  return not_ready;
}

EXPORT CUresult cuEventElapsedTime(float *milliseconds, void *start_handle, void *end_handle) {
  ENTER;
  Event *start = find_event(start_handle), *end = find_event(end_handle);
  if (!milliseconds) return invalid_value;
  if (!start || !end || !start->timing || !end->timing) return invalid_handle;
  if (start->capture || end->capture || !start->stream || !end->stream) return invalid_handle;
  if (start->stream->done < start->position || end->stream->done < end->position) return not_ready;
  if (!start->has_time || !end->has_time) return invalid_handle;
  *milliseconds = static_cast<float>(end->nanoseconds - start->nanoseconds) * 1e-6f;
  return ok;
}
EXPORT CUresult cuEventElapsedTime_v2(float *ms, void *start, void *end) { return cuEventElapsedTime(ms, start, end); }

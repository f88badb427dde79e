// Stream capture and graphs: captured work is kept, with copies of its arguments, and runs once for every launch.
#include <algorithm>

#include "state.h"

using namespace cs_emu;

EXPORT CUresult cuStreamBeginCapture_v2(void *handle, int mode) {
  ENTER;
  Stream *stream = find_stream(handle);
  if (!stream) return invalid_handle;
  if (mode < 0 || mode > 2) return invalid_value;
  if (stream == &state().legacy) return capture_unsupported;
  if (stream->capture) return invalid_value;  // it captures already
  auto capture = std::make_shared<Capture>();
  capture->origin = stream;
  capture->mode = mode;
  capture->thread = std::this_thread::get_id();
  capture->streams[stream];
  stream->capture = capture;
  state().captures.push_back(capture);
  return ok;
}

EXPORT CUresult cuStreamEndCapture(void *handle, void **out) {
  ENTER_TO_END;
  Stream *stream = find_stream(handle);
  if (!stream) return invalid_handle;
  if (!out) return invalid_value;
  *out = nullptr;
  if (!stream->capture) return invalid_value;
  std::shared_ptr<Capture> capture = stream->capture;
  if (capture->origin != stream) return capture_unmatched;
  if (capture->mode != 2 && capture->thread != std::this_thread::get_id()) return capture_wrong_thread;
  bool joined = true;
  const Clock &origin = capture->streams[stream];
  for (auto &entry : capture->streams) {
    auto own = entry.second.find(entry.first);
    if (entry.first != stream && own != entry.second.end()) {
      auto seen = origin.find(entry.first);
      if (seen == origin.end() || seen->second < own->second) joined = false;
    }
  }
  for (auto &entry : capture->streams) entry.first->capture = nullptr;
  capture->active = false;
  auto &all = state().captures;
  all.erase(std::remove(all.begin(), all.end(), capture), all.end());
  if (state().lost) return state().lost;
  if (capture->invalid) return capture_invalidated;
  if (!joined) return capture_unjoined;
  auto graph = std::make_unique<Graph>();
  graph->nodes = capture->nodes;
  *out = graph.get();
  state().graphs[graph.get()] = std::move(graph);
  return ok;
}

EXPORT CUresult cuStreamIsCapturing(void *handle, int *status) {
  ENTER;
  Stream *stream = find_stream(handle);
  if (!stream) return invalid_handle;
  if (!status) return invalid_value;
  *status = !stream->capture ? 0 : stream->capture->invalid ? 2 : 1;
  return ok;
}

EXPORT CUresult cuGraphGetNodes(void *handle, void **nodes, size_t *count) {
  ENTER;
  auto it = state().graphs.find(static_cast<Graph *>(handle));
  if (it == state().graphs.end()) return invalid_handle;
  if (!count) return invalid_value;
  const size_t n = it->first->nodes.size();
  if (nodes)
    for (size_t i = 0; i < *count && i < n; ++i) nodes[i] = &it->first->nodes[i];
  *count = n;
  return ok;
}

EXPORT CUresult cuGraphInstantiateWithFlags(void **out, void *handle, unsigned long long) {
  ENTER;
  auto it = state().graphs.find(static_cast<Graph *>(handle));
  if (it == state().graphs.end()) return invalid_handle;
  if (!out) return invalid_value;
  auto executable = std::make_unique<Graph>(*it->first);
  *out = executable.get();
  state().executables[executable.get()] = std::move(executable);
  return ok;
}
EXPORT CUresult cuGraphInstantiate_v2(void **out, void *handle, void **, char *, size_t) {
  return cuGraphInstantiateWithFlags(out, handle, 0);
}

EXPORT CUresult cuGraphUpload(void *handle, void *stream) {
  ENTER;
  if (!state().executables.count(static_cast<Graph *>(handle)) || !find_stream(stream)) return invalid_handle;
  return ok;
}

EXPORT CUresult cuGraphLaunch(void *handle, void *stream_handle) {
  ENTER;
  auto it = state().executables.find(static_cast<Graph *>(handle));
  Stream *stream = find_stream(stream_handle);
  if (it == state().executables.end() || !stream) return invalid_handle;
  const std::vector<Node> nodes = it->first->nodes;  // running one may not outlive the executable
  if (!stream->capture) {
    // Every node by itself, so that other streams may get between them.
    for (size_t i = 0; i < nodes.size(); ++i)
      if (nodes[i].external && state().events.count(nodes[i].external)) {
        nodes[i].external->stream = stream;
        nodes[i].external->position = stream->enqueued + 1 + i;
        nodes[i].external->has_time = false;
      }
    for (const Node &node : nodes) {
      const int status = enqueue(stream, node);
      if (status) return status;
    }
    return ok;
  }
  return enqueue(stream, Node{"graph", [nodes] {
                                for (const Node &node : nodes) {
                                  const int status = node.run();
                                  if (status) return status;
                                }
                                return 0;
                              }});
}

EXPORT CUresult cuGraphExecDestroy(void *handle) {
  ENTER_TO_END;
  return ended(state().executables.erase(static_cast<Graph *>(handle)) ? ok : invalid_handle);
}

EXPORT CUresult cuGraphDestroy(void *handle) {
  ENTER_TO_END;
  return ended(state().graphs.erase(static_cast<Graph *>(handle)) ? ok : invalid_handle);
}

// Memory calls: allocation, copies, fills. Copies check both ends against the allocations.
#include <cstring>

#include "state.h"

using namespace cs_emu;

namespace {

void *pointer(CUdeviceptr p) { return reinterpret_cast<void *>(static_cast<uintptr_t>(p)); }

int copied(void *to, const void *from, size_t bytes) {
  std::memmove(to, from, bytes);
  return 0;
}

Node from_host(std::function<int()> run) { return Node{"copy to the device", std::move(run), nullptr, Kind::upload}; }
Node to_host(std::function<int()> run) { return Node{"copy to the host", std::move(run), nullptr, Kind::download}; }

// A copy between host and device is no single step: where the schedule draws, others may see half of it.
int enqueue_copy(Stream *stream, Node (*kind)(std::function<int()>), void *to, const void *from, size_t bytes,
                 std::shared_ptr<void> keep = nullptr) {
  const size_t first = state().schedule == Schedule::any && !stream->capture ? bytes / 2 : 0;
  if (first) {
    const int status = enqueue(stream, kind([=] { return (void)keep, copied(to, from, first); }));
    if (status) return status;
  }
  return enqueue(stream, kind([=] {
                   (void)keep;
                   return copied(static_cast<char *>(to) + first, static_cast<const char *>(from) + first,
                                 bytes - first);
                 }));
}

int to_device(CUdeviceptr to, const void *from, size_t bytes, void *handle) {
  Stream *stream = find_stream(handle);
  if (!stream) return invalid_handle;
  if (!bytes) return ok;
  if (!from || !is_device(pointer(to), bytes)) return invalid_value;
  if (!is_pinned(from, bytes) && !stream->capture) {  // pageable memory is read during the call
    auto staged = std::make_shared<std::vector<unsigned char>>(static_cast<const unsigned char *>(from),
                                                               static_cast<const unsigned char *>(from) + bytes);
    return enqueue_copy(stream, from_host, pointer(to), staged->data(), bytes, staged);
  }
  return enqueue_copy(stream, from_host, pointer(to), from, bytes);
}

int to_host(void *to, CUdeviceptr from, size_t bytes, void *handle) {
  Stream *stream = find_stream(handle);
  if (!stream) return invalid_handle;
  if (!bytes) return ok;
  if (!to || !is_device(pointer(from), bytes)) return invalid_value;
  const int status = enqueue_copy(stream, to_host, to, pointer(from), bytes);
  if (status || stream->capture || is_pinned(to, bytes)) return status;
  advance(stream, stream->enqueued);  // into pageable memory: the call waits
  return ok;
}

int on_device(CUdeviceptr to, CUdeviceptr from, size_t bytes, void *handle) {
  Stream *stream = find_stream(handle);
  if (!stream) return invalid_handle;
  if (!bytes) return ok;
  if (!is_device(pointer(to), bytes) || !is_device(pointer(from), bytes)) return invalid_value;
  return enqueue(stream, Node{"copy on the device", [=] { return copied(pointer(to), pointer(from), bytes); }});
}

template <class T> int fill(CUdeviceptr to, T value, size_t count, void *handle) {
  Stream *stream = find_stream(handle);
  if (!stream) return invalid_handle;
  if (!count) return ok;
  if (to % sizeof(T) || !is_device(pointer(to), count * sizeof(T))) return invalid_value;
  return enqueue(stream, Node{"fill", [=] {
                                T *p = static_cast<T *>(pointer(to));
                                for (size_t i = 0; i < count; ++i) p[i] = value;
                                return 0;
                              }});
}

struct Copy2D {  // CUDA_MEMCPY2D_v2
  size_t src_x, src_y;
  unsigned src_kind;
  const void *src_host;
  CUdeviceptr src_device;
  void *src_array;
  size_t src_pitch, dst_x, dst_y;
  unsigned dst_kind;
  void *dst_host;
  CUdeviceptr dst_device;
  void *dst_array;
  size_t dst_pitch, width, height;
};

}  // namespace

EXPORT CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
  ENTER;
  if (!free_bytes || !total) return invalid_value;
  *total = memory_total();
  *free_bytes = memory_total() - memory_used();
  return ok;
}

EXPORT CUresult cuMemAlloc_v2(CUdeviceptr *out, size_t bytes) {
  ENTER;
  if (!out || !bytes) return invalid_value;
  const int status = unsafe_in_capture();
  if (status) return status;
  void *p = device_alloc(bytes);
  if (!p) return out_of_memory;
  *out = reinterpret_cast<CUdeviceptr>(p);
  return ok;
}

EXPORT CUresult cuMemFree_v2(CUdeviceptr p) {
  ENTER_TO_END;
  int status = unsafe_in_capture();
  if (status) return status;
  drain(false);  // freeing waits for the device
  std::string text;
  status = device_free(pointer(p), &text);
  const int answer = ended(status);
  if (!text.empty()) fail_work(error_illegal_address, text);
  return answer;
}

EXPORT CUresult cuMemHostAlloc(void **out, size_t bytes, unsigned) {
  ENTER;
  if (!out || !bytes) return invalid_value;
  const int status = unsafe_in_capture();
  if (status) return status;
  *out = host_alloc(bytes);
  return *out ? ok : out_of_memory;
}
EXPORT CUresult cuMemAllocHost_v2(void **out, size_t bytes) { return cuMemHostAlloc(out, bytes, 0); }

EXPORT CUresult cuMemFreeHost(void *p) {
  ENTER_TO_END;
  const int status = unsafe_in_capture();
  if (status) return status;
  drain(false);
  return ended(host_free(p));
}

EXPORT CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, void *stream) {
  ENTER;
  return to_device(to, from, bytes, stream);
}
EXPORT CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, void *stream) {
  ENTER;
  return to_host(to, from, bytes, stream);
}
EXPORT CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, void *stream) {
  ENTER;
  return on_device(to, from, bytes, stream);
}
EXPORT CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes) {
  ENTER;
  int status = unsafe_in_capture();
  if (!status) status = to_device(to, from, bytes, nullptr);
  return ended(status);
}
EXPORT CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes) {
  ENTER;
  int status = unsafe_in_capture();
  if (!status) status = to_host(to, from, bytes, nullptr);
  return ended(status);
}
EXPORT CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
  ENTER;
  int status = unsafe_in_capture();
  if (!status) status = on_device(to, from, bytes, nullptr);
  return ended(status);
}

EXPORT CUresult cuMemcpy2DAsync_v2(const Copy2D *copy, void *handle) {
  ENTER;
  Stream *stream = find_stream(handle);
  if (!stream) return invalid_handle;
  if (!copy || copy->src_kind < 1 || copy->src_kind > 2 || copy->dst_kind < 1 || copy->dst_kind > 2)
    return invalid_value;
  if (!copy->width || !copy->height) return ok;
  const Copy2D c = *copy;
  if (c.src_x + c.width > c.src_pitch || c.dst_x + c.width > c.dst_pitch) return invalid_value;
  const unsigned char *from = c.src_kind == 2 ? static_cast<unsigned char *>(pointer(c.src_device))
                                              : static_cast<const unsigned char *>(c.src_host);
  unsigned char *to = static_cast<unsigned char *>(c.dst_kind == 2 ? pointer(c.dst_device) : c.dst_host);
  from += c.src_y * c.src_pitch + c.src_x;
  to += c.dst_y * c.dst_pitch + c.dst_x;
  const size_t from_bytes = (c.height - 1) * c.src_pitch + c.width, to_bytes = (c.height - 1) * c.dst_pitch + c.width;
  if (c.src_kind == 2 && !is_device(from, from_bytes)) return invalid_value;
  if (c.dst_kind == 2 && !is_device(to, to_bytes)) return invalid_value;
  return enqueue(stream, Node{"copy of rows", [=] {
                                for (size_t row = 0; row < c.height; ++row)
                                  std::memmove(to + row * c.dst_pitch, from + row * c.src_pitch, c.width);
                                return 0;
                              }});
}

EXPORT CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, void *stream) {
  ENTER;
  return fill<unsigned char>(to, value, count, stream);
}
EXPORT CUresult cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t count, void *stream) {
  ENTER;
  return fill<unsigned>(to, value, count, stream);
}

EXPORT CUresult cuPointerGetAttribute(void *out, int attribute, CUdeviceptr p) {
  ENTER;
  if (!out || attribute != 2) return invalid_value;  // CU_POINTER_ATTRIBUTE_MEMORY_TYPE alone
  const bool device = is_device(pointer(p), 1);
  if (!device && !is_pinned(pointer(p), 1)) return invalid_value;
  *static_cast<unsigned *>(out) = device ? 2 : 1;
  return ok;
}

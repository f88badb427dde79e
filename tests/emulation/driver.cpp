// The emulated driver: initialisation, the one device, its context. Test hooks: cs_emu_*.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "state.h"

namespace cs_emu {

thread_local std::vector<void *> context_stack;

State &state() {
  static State *the = new State();  // never destroyed: Python may free things after main has ended
  return *the;
}

Enter::Enter(bool needs_context) : lock(state().mutex) {
  if (!state().initialized) status = not_initialized;
  else if (needs_context && (context_stack.empty() || !context_stack.back())) status = invalid_context;
  else status = needs_context ? state().lost : ok;
}

int shared_optin() {
  switch (state().capability) {
    case 72: return 96 << 10;
    case 75: return 64 << 10;
    case 80: case 87: return 163 << 10;
    case 86: case 89: case 120: case 121: return 99 << 10;
    default: return 227 << 10;
  }
}

namespace {

int context_object;
void *const the_context = &context_object;

struct Error {
  int status;
  const char *name, *text;
};
const Error errors[] = {
    {ok, "CUDA_SUCCESS", "no error"},
    {invalid_value, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {out_of_memory, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {not_initialized, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {no_device, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {invalid_device, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {invalid_image, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {invalid_context, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {invalid_handle, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {not_found, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {not_ready, "CUDA_ERROR_NOT_READY", "device not ready"},
    {error_illegal_address, "CUDA_ERROR_ILLEGAL_ADDRESS", nullptr},
    {launch_out_of_resources, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {error_illegal_instruction, "CUDA_ERROR_ILLEGAL_INSTRUCTION", nullptr},
    {error_misaligned, "CUDA_ERROR_MISALIGNED_ADDRESS", nullptr},
    {error_launch_failed, "CUDA_ERROR_LAUNCH_FAILED", nullptr},
    {not_supported, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {capture_unsupported, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {capture_invalidated, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
    {capture_merge, "CUDA_ERROR_STREAM_CAPTURE_MERGE",
     "operation would result in a merge of separate capture sequences"},
    {capture_unmatched, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not ended in the same stream as it began"},
    {capture_unjoined, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"},
    {capture_isolation, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION",
     "dependency created on uncaptured work in another stream"},
    {capture_implicit, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
     "operation would make the legacy stream depend on a capturing stream"},
    {captured_event, "CUDA_ERROR_CAPTURED_EVENT",
     "operation not permitted on an event last recorded in a capturing stream"},
    {capture_wrong_thread, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD",
     "attempt to terminate a thread-local capture sequence from another thread"},
};
const Error *find_error(int status) {
  for (const Error &e : errors)
    if (e.status == status) return &e;
  return nullptr;
}

}  // namespace
}  // namespace cs_emu

using namespace cs_emu;

EXPORT CUresult cuInit(unsigned flags) {
  std::lock_guard<std::recursive_mutex> lock(state().mutex);
  if (flags) return invalid_value;
  if (state().initialized) return ok;
  const char *devices = std::getenv("CRISPSEG_EMULATION_DEVICES");
  if (devices && !std::strcmp(devices, "0")) return no_device;
  const char *capability = std::getenv("CRISPSEG_EMULATION_CAPABILITY"),
             *eager = std::getenv("CRISPSEG_EMULATION_EAGER");
  if (capability && *capability) state().capability = std::atoi(capability);
  state().eager = eager && *eager == '1';
  // CRISPSEG_EMULATION_ORDER: forward, reverse, or a number (the seed of a shuffle).
  const char *order = std::getenv("CRISPSEG_EMULATION_ORDER");
  if (order && !std::strcmp(order, "reverse")) set_order(Order::reverse, 0);
  else if (order && *order >= '0' && *order <= '9') set_order(Order::shuffle, std::strtoull(order, nullptr, 10));
  state().initialized = true;
  return ok;
}

EXPORT CUresult cuDriverGetVersion(int *version) {
  if (!version) return invalid_value;
  *version = 11040;
  return ok;
}

EXPORT CUresult cuGetErrorName(int status, const char **text) {
  const Error *error = find_error(status);
  *text = error ? error->name : nullptr;
  return error ? ok : invalid_value;
}

EXPORT CUresult cuGetErrorString(int status, const char **text) {
  static thread_local std::string kept;
  const Error *error = find_error(status);
  *text = error ? error->text : nullptr;
  if (error && !error->text) {  // failures of kernels: say which and why
    std::lock_guard<std::recursive_mutex> lock(state().mutex);
    kept = state().error_text;
    *text = kept.c_str();
  }
  return error ? ok : invalid_value;
}

EXPORT CUresult cuDeviceGetCount(int *count) {
  ENTER_WITHOUT_CONTEXT;
  *count = 1;
  return ok;
}
EXPORT CUresult cuDeviceGet(int *device, int ordinal) {
  ENTER_WITHOUT_CONTEXT;
  if (ordinal != 0) return invalid_device;
  *device = 0;
  return ok;
}
EXPORT CUresult cuDeviceGetName(char *name, int bytes, int device) {
  ENTER_WITHOUT_CONTEXT;
  if (device) return invalid_device;
  std::snprintf(name, static_cast<size_t>(bytes), "Emulated GPU");
  return ok;
}
EXPORT CUresult cuDeviceGetUuid(unsigned char *uuid, int device) {
  ENTER_WITHOUT_CONTEXT;
  if (device) return invalid_device;
  std::memcpy(uuid, "crispsegemulated", 16);
  return ok;
}
EXPORT CUresult cuDeviceGetUuid_v2(unsigned char *uuid, int device) { return cuDeviceGetUuid(uuid, device); }
EXPORT CUresult cuDeviceTotalMem_v2(size_t *bytes, int device) {
  ENTER_WITHOUT_CONTEXT;
  if (device) return invalid_device;
  *bytes = memory_total();
  return ok;
}
EXPORT CUresult cuDeviceGetAttribute(int *value, int attribute, int device) {
  ENTER_WITHOUT_CONTEXT;
  if (device) return invalid_device;
  switch (attribute) {
    case 1: case 2: case 3: *value = attribute == 3 ? 64 : 1024; break;  // threads a block, and its x, y, z
    case 4: *value = 64; break;
    case 5: *value = 2147483647; break;  // grid x, y, z
    case 6: case 7: *value = 65535; break;
    case 8: *value = 48 << 10; break;    // shared memory a block
    case 10: *value = 32; break;         // warp
    case 12: *value = 65536; break;      // registers a block
    case 13: *value = 1000000; break;    // kHz
    case 16: *value = 3; break;          // multiprocessors: few, so that grids that loop do loop
    case 18: *value = 0; break;          // integrated
    case 36: *value = 1000000; break;    // memory clock, kHz
    case 37: *value = 256; break;        // bus width
    case 38: *value = 4 << 20; break;    // L2
    case 39: *value = 2048; break;       // threads a multiprocessor
    case 41: *value = 1; break;          // unified addressing
    case 75: *value = state().capability / 10; break;
    case 76: *value = state().capability % 10; break;
    case 81: *value = shared_optin() + 1024; break;
    case 82: *value = 65536; break;
    case 97: *value = shared_optin(); break;
    default:
      if (attribute < 1 || attribute > 200) return invalid_value;
      *value = 0;
  }
  return ok;
}

EXPORT CUresult cuDevicePrimaryCtxRetain(void **context, int device) {
  ENTER_WITHOUT_CONTEXT;
  if (device) return invalid_device;
  *context = the_context;
  return ok;
}
EXPORT CUresult cuDevicePrimaryCtxRelease_v2(int device) {
  ENTER_WITHOUT_CONTEXT;
  return device ? invalid_device : ok;
}
EXPORT CUresult cuCtxSetCurrent(void *context) {
  ENTER_WITHOUT_CONTEXT;
  if (context && context != the_context) return invalid_context;
  if (!context_stack.empty()) context_stack.pop_back();
  if (context) context_stack.push_back(context);
  return ok;
}
EXPORT CUresult cuCtxGetCurrent(void **context) {
  ENTER_WITHOUT_CONTEXT;
  *context = context_stack.empty() ? nullptr : context_stack.back();
  return ok;
}
EXPORT CUresult cuCtxPushCurrent_v2(void *context) {
  ENTER_WITHOUT_CONTEXT;
  if (context != the_context) return invalid_context;
  context_stack.push_back(context);
  return ok;
}
EXPORT CUresult cuCtxPopCurrent_v2(void **context) {
  ENTER_TO_END;
  if (context) *context = context_stack.back();
  context_stack.pop_back();
  return ok;
}
EXPORT CUresult cuCtxGetDevice(int *device) {
  ENTER_TO_END;
  *device = 0;
  return ok;
}
EXPORT CUresult cuCtxSynchronize() {
  ENTER;
  const int status = unsafe_in_capture();
  if (status) return status;
  drain(false);
  return state().lost;
}

// ---- test hooks ----
// Text of the first failure of a kernel, or of the first damage to guard bytes; "" = all is well. The context lives
// again afterwards; work that was enqueued before is dropped.
EXPORT const char *cs_emu_check() {
  static std::string text;
  std::lock_guard<std::recursive_mutex> lock(state().mutex);
  text = state().lost ? state().error_text : check_guards();
  if (state().lost) drain(false);
  state().lost = 0;
  return text.c_str();
}
// As if a kernel had failed with this status just now.
EXPORT void cs_emu_break(int status) {
  std::lock_guard<std::recursive_mutex> lock(state().mutex);
  fail_work(status, "a test says so");
}
EXPORT int64_t cs_emu_launches() { return state().launches; }
EXPORT int64_t cs_emu_live_allocations() {
  std::lock_guard<std::recursive_mutex> lock(state().mutex);
  return static_cast<int64_t>(live_allocations());
}
// kind: 0 forward, 1 reverse, 2 shuffle.
EXPORT void cs_emu_set_order(int kind, uint64_t seed) {
  std::lock_guard<std::recursive_mutex> lock(state().mutex);
  set_order(static_cast<Order>(kind), seed);
}
EXPORT void cs_emu_set_eager(int eager) {
  std::lock_guard<std::recursive_mutex> lock(state().mutex);
  state().eager = eager != 0;
}
// schedule: of Schedule; seed: of the draws.
EXPORT void cs_emu_set_schedule(int schedule, uint64_t seed) {
  std::lock_guard<std::recursive_mutex> lock(state().mutex);
  state().schedule = static_cast<Schedule>(schedule);
  state().draws = seed * 0x9e3779b97f4a7c15u + 1;
}

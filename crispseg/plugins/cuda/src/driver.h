// The CUDA driver functions that this library uses, found at run time: no CUDA header and no CUDA library to link.
// Declared from the public documentation of the driver API; the _v2 names are the 64-bit ones, in place since CUDA 4.
#pragma once
#include <cstddef>
#include <cstdint>

namespace crispseg {

typedef int CUresult;
typedef int CUdevice;
typedef uint64_t CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;

enum {
  CUDA_SUCCESS = 0,
  CUDA_ERROR_OUT_OF_MEMORY = 2,
  CUDA_ERROR_NO_BINARY_FOR_GPU = 209,
  CUDA_ERROR_NOT_FOUND = 500,
};
enum {  // CUdevice_attribute
  CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16,
  CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
  CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
  CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97,
};
enum {  // CUfunction_attribute
  CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK = 0,
  CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES = 1,
  CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES = 3,
  CU_FUNC_ATTRIBUTE_NUM_REGS = 4,
  CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8,
};

#define CRISPSEG_DRIVER_FUNCTIONS(X)                                                                                \
  X(cuInit, (unsigned))                                                                                             \
  X(cuGetErrorName, (CUresult, const char **))                                                                      \
  X(cuGetErrorString, (CUresult, const char **))                                                                    \
  X(cuCtxGetCurrent, (CUcontext *))                                                                                 \
  X(cuCtxGetDevice, (CUdevice *))                                                                                   \
  X(cuCtxPushCurrent_v2, (CUcontext))                                                                               \
  X(cuCtxPopCurrent_v2, (CUcontext *))                                                                              \
  X(cuDeviceGetAttribute, (int *, int, CUdevice))                                                                   \
  X(cuDeviceGetName, (char *, int, CUdevice))                                                                       \
  X(cuModuleLoadData, (CUmodule *, const void *))                                                                   \
  X(cuModuleUnload, (CUmodule))                                                                                     \
  X(cuModuleGetFunction, (CUfunction *, CUmodule, const char *))                                                    \
  X(cuFuncGetAttribute, (int *, int, CUfunction))                                                                   \
  X(cuFuncSetAttribute, (CUfunction, int, int))                                                                     \
  X(cuOccupancyMaxActiveBlocksPerMultiprocessor, (int *, CUfunction, int, size_t))                                  \
  X(cuLaunchKernel,                                                                                                 \
    (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void **, void **)) \
  X(cuMemAlloc_v2, (CUdeviceptr *, size_t))                                                                         \
  X(cuMemFree_v2, (CUdeviceptr))                                                                                    \
  X(cuMemcpyHtoD_v2, (CUdeviceptr, const void *, size_t))                                                           \
  X(cuMemcpyDtoH_v2, (void *, CUdeviceptr, size_t))                                                                 \
  X(cuMemcpyDtoDAsync_v2, (CUdeviceptr, CUdeviceptr, size_t, CUstream))                                             \
  X(cuMemsetD8Async, (CUdeviceptr, unsigned char, size_t, CUstream))                                                \
  X(cuMemsetD32Async, (CUdeviceptr, unsigned, size_t, CUstream))

struct Driver {
#define CRISPSEG_DECLARE(name, parameters) CUresult(*name) parameters = nullptr;
  CRISPSEG_DRIVER_FUNCTIONS(CRISPSEG_DECLARE)
#undef CRISPSEG_DECLARE
};

// The driver, opened and initialised, or nullptr with the error set. Opened once a process; a failure is tried again at
// the next call. $CRISPSEG_LIBCUDA names another library than libcuda.so.1.
const Driver *driver();

// Sets csg_last_error and returns status.
__attribute__((format(printf, 2, 3))) int fail(int status, const char *format, ...);
// The same for a driver call that failed: "what: CUDA_ERROR_...: text".
int fail_driver(const Driver *cu, CUresult result, const char *what);

}  // namespace crispseg

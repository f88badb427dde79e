/* Stands in for CUDA's header of this name where none is installed: TensorRT's headers take only these two types from
 * it, and the plugins hand streams to the driver API, whose CUstream is the same pointer. */
#ifndef CRISPSEG_CUDA_RUNTIME_API_H
#define CRISPSEG_CUDA_RUNTIME_API_H
typedef struct CUstream_st *cudaStream_t;
typedef struct CUevent_st *cudaEvent_t;
#endif

/* C ABI of the crispseg sparse ops on NVIDIA GPUs (op contract version 1, see docs/bundle.md).
 *
 * The host side of this library is plain C++: it opens the CUDA driver (libcuda.so.1) at run time, links to no CUDA
 * library and needs no CUDA header. The kernels come as an image (cubin, fatbin or PTX) made by nvcc when the library
 * was built or by NVRTC later; both compile the same files (cuda/kernels).
 *
 * Conventions
 *  - Every function that returns int returns CSG_OK (0) or a negative csg_status; csg_last_error() says why
 *    (thread-local).
 *  - Pointers named d_* are device addresses. `stream` is a CUstream (= cudaStream_t). Work is only enqueued: no
 *    function below csg_create waits for the device, allocates, or reads device memory on the host, so every call can
 *    be captured into a CUDA graph. Grids are sized by capacity (or by the number of multiprocessors), never by a
 *    count.
 *  - Rows are active sites in raster order (y, then x). A matrix of rows has room for `capacity` rows; how many are
 *    real stands on the device (d_count, int32). Rows past the count are neither read nor written.
 *  - Matrices are row major with a row stride ld in elements; ld * element size is a multiple of 16 bytes and so is the
 *    address, for fp16 and int8. int32 indices; -1 = no neighbour. Taps: k = ky + 3 * kx.
 *  - Results are the same from run to run: no atomic adds of floating point numbers, no order that depends on timing.
 *  - A context belongs to the CUDA context that was current in csg_create. Calls on different streams may run at once
 *    as long as they are given different workspaces.
 */
#ifndef CRISPSEG_CUDA_H
#define CRISPSEG_CUDA_H
#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define CSG_API __declspec(dllexport)
#else
#define CSG_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define CSG_ABI_VERSION 2

typedef enum {
  CSG_OK = 0, CSG_BAD_ARGUMENT = -1, CSG_NO_DRIVER = -2, CSG_UNSUPPORTED = -3, CSG_DRIVER_ERROR = -4, CSG_INTERNAL = -5
} csg_status;
typedef enum { CSG_NEAREST = 0, CSG_BILINEAR = 1, CSG_BILINEAR_CORNERS = 2 } csg_upsample;
typedef enum { CSG_EXTENT_ACTIVE = 0, CSG_EXTENT_IMAGE = 1 } csg_extent;
typedef enum { CSG_F32 = 0, CSG_F16 = 1, CSG_I8 = 2 } csg_type;

typedef struct csg_context csg_context;
typedef void *csg_stream; /* CUstream */

CSG_API int csg_abi_version(void);
CSG_API const char *csg_last_error(void);
CSG_API const char *csg_build_info(void);
/* Kernel image linked into the library (fatbin) and its size; NULL, 0 when it was built without nvcc. */
CSG_API const void *csg_embedded_image(size_t *bytes);
/* Loads an image (NULL = the embedded one) into the current CUDA context and looks up every kernel. $CRISPSEG_LIBCUDA
 * names another driver library. NULL on failure. */
CSG_API csg_context *csg_create(const void *image, size_t bytes);
CSG_API void csg_destroy(csg_context *ctx);
CSG_API int csg_compute_capability(const csg_context *ctx); /* 72, 87, 90, ... */
/* JSON: [{"name", "registers", "shared_bytes", "local_bytes", "threads"}] of every kernel, as the driver reports it. */
CSG_API const char *csg_kernel_report(const csg_context *ctx);

/* ---- front end -------------------------------------------------------------------------------------------- */
/* d_not_finite i32 = pixels of d_logits (fp16 or fp32) [C,h,w] without a softmax: NaN or +inf in any class, or -inf in
 * all. In the others a class of -inf (masked) gets -1e30 (fp16: -65504) in place: probability 0 as before, but
 * interpolation between two such pixels makes no NaN of it. Finite logits stay as they are. */
CSG_API int csg_check_logits(csg_context *ctx, csg_stream stream, csg_type type, void *d_logits, int C, int h, int w,
                             int32_t *d_not_finite);
/* d_logits (fp16 or fp32) [C,h,w] -> d_labels u8 [H,W] (argmax, lowest class wins ties), d_confidence u8 [H,W] =
 * round(255 * max p) or NULL, d_coords i32 [capacity,2] (y,x), d_count i32 = min(found, capacity), d_found i32. Active:
 * E > threshold, E = -sum p ln(max(p,1e-5)). One pass over the low-resolution logits. Over capacity the most uncertain
 * pixels stay: E is put into 2048 equal bins of [0, ln C]; all pixels of the bins above the cut stay, and those of the
 * cut's bin first in raster order (the CPU engine keeps the exact order inside that bin; the difference is below one
 * bin's width of entropy). C <= 256. */
CSG_API size_t csg_select_workspace(int H, int W);
CSG_API int csg_select_pixels(csg_context *ctx, csg_stream stream, csg_type type, const void *d_logits, int C, int h,
                              int w, int H, int W, csg_upsample up, float threshold, int32_t capacity,
                              uint8_t *d_labels, uint8_t *d_confidence, int32_t *d_coords, int32_t *d_count,
                              int32_t *d_found, void *d_workspace, size_t workspace_bytes);
/* Columns of x: see PixelFeatures. kinds: up to 8 feature codes in column order: 0 = rgb (3 columns), 1 = xy (2), 2 = p
 * (C), 3 = p > value (C). d_yi fp32 [capacity,C], needed for 2 and 3. Columns from the last feature up to ldx are
 * written as zeros. */
typedef struct {
  int32_t features, kinds[8];
  float values[8];
  float mean[3], std[3];
  int32_t bgr;
} csg_features;
CSG_API int csg_pixel_features(csg_context *ctx, csg_stream stream, const uint8_t *d_image, int H, int W,
                               const int32_t *d_coords, const int32_t *d_count, int32_t capacity, const float *d_yi,
                               int64_t ldyi, int C, const csg_features *features, csg_type type, void *d_x,
                               int64_t ldx);
/* d_y fp32 [capacity,C]: logits at the sites, upsampled as in csg_select_pixels. */
CSG_API int csg_logits_at(csg_context *ctx, csg_stream stream, csg_type type, const void *d_logits, int C, int h, int w,
                          int H, int W, csg_upsample up, const int32_t *d_coords, const int32_t *d_count,
                          int32_t capacity, float *d_y, int64_t ldy);

/* ---- kernel maps (dense index grid in the workspace) --------------------------------------------------------- */
CSG_API size_t csg_map_workspace(int H, int W); /* for both functions, H x W = grid of the (finer) level */
CSG_API int csg_submanifold_map(csg_context *ctx, csg_stream stream, const int32_t *d_coords, const int32_t *d_count,
                                int32_t capacity, int H, int W, int32_t *d_map, void *d_workspace,
                                size_t workspace_bytes);
/* As cs_down_map. capacity_out: room for sites of the coarser level; needs csg_down_capacity(capacity, H, W) to hold
 * any input; more sites than room: the first in raster order are kept. */
CSG_API int32_t csg_down_capacity(int32_t capacity, int H, int W); /* min(4 * capacity, ((H-1)/2) * ((W-1)/2)) */
CSG_API int csg_down_map(csg_context *ctx, csg_stream stream, const int32_t *d_coords, const int32_t *d_count,
                         int32_t capacity, int H, int W, csg_extent extent, int32_t capacity_out, int32_t *d_coords_out,
                         int32_t *d_count_out, int32_t *d_down, int32_t *d_up, void *d_workspace,
                         size_t workspace_bytes);
/* Rows grouped by the parity of (y, x): (even, even), (even, odd), (odd, even), (odd, odd), order kept inside a group.
 * An up-convolution reads 4, 2, 2 or 1 taps in each of the four groups, and a tile of rows skips the others. d_order
 * i32 [capacity]. Workspace as csg_map_workspace. */
CSG_API int csg_parity_order(csg_context *ctx, csg_stream stream, const int32_t *d_coords, const int32_t *d_count,
                             int32_t capacity, int H, int W, int32_t *d_order, void *d_workspace,
                             size_t workspace_bytes);

/* ---- convolution -------------------------------------------------------------------------------------------- */
/* Weights are packed on the host for the arithmetic type, the same way for every GPU, and uploaded by the caller to an
 * address that is a multiple of 16. Source: float [K,cin,cout] row major, finite. Input rows have their channels padded
 * with zeros to a multiple of 16 (fp16) or 32 (int8); the packed weights bring their own padding. Output columns from
 * cout on are not written. For int8, csg_pack_weight quantises symmetrically per output channel and writes the scales:
 * w ~ q * scale[cout]. K <= 32. */
CSG_API size_t csg_packed_bytes(csg_type type, int K, int cin, int cout);
CSG_API int csg_pack_weight(csg_type type, const float *weight, int K, int cin, int cout, void *packed, float *scales);

typedef struct {
  csg_type type;                  /* arithmetic and type of x and weight; accumulates in fp32 (int32 for int8) */
  const void *d_x; int64_t ldx;   /* columns cin .. padded cin exist and hold zeros (fp16, int8) */
  const int32_t *d_map;           /* [capacity,K], or NULL: identity, K = 1 */
  const int32_t *d_order;         /* from csg_parity_order, or NULL: raster order */
  const int32_t *d_count;         /* real output rows */
  int32_t capacity, K, cin, cout;
  const void *d_weight;           /* packed */
  const float *d_bias;            /* fp32 [cout] or NULL */
  csg_type residual_type;
  const void *d_residual;
  int64_t ldr; /* fp32 or fp16 [capacity,cout], or NULL; added before relu; may alias y */
  int32_t relu;
  csg_type y_type; void *d_y; int64_t ldy;                     /* or NULL */
  const float *d_scale[2], *d_shift[2];                        /* fp32 [cout] */
  csg_type z_type[2]; void *d_z[2]; int64_t ldz[2];            /* z = relu(y * scale + shift), or NULL */
  /* int8 only: acc * d_dequant[cout] is the product in real units (input scale times weight scale). An int8 output is
   * clamp(rint(value / quant)) to -127..127. */
  const float *d_dequant;
  float y_quant, z_quant[2];
  /* csg_conv_workspace bytes, 16-byte aligned, or NULL. With it, long sums over few rows (the deep levels) are shared
   * between blocks and added in a fixed order; without it one block sums each tile. Nothing in it outlives the call. */
  void *d_workspace; size_t workspace_bytes;
  int32_t portable; /* 1: the kernels of compute capability 7.2, 2: those of 8.0, to check them on any later device; 0:
                       the fastest */
} csg_conv;
/* Depends on type, capacity, K, cin, cout, portable and the device alone; 0 = no use for one (or a wrong argument, see
 * csg_last_error). */
CSG_API size_t csg_conv_workspace(const csg_context *ctx, const csg_conv *conv);
CSG_API int csg_sparse_conv(csg_context *ctx, csg_stream stream, const csg_conv *conv);

/* ---- back end ----------------------------------------------------------------------------------------------- */
/* As cs_ensemble_gated. yi, yo, ye fp32 or fp16 rows (each its own type); d_gate: the eight arrays w1 b1 w2 b2 w3 b3 w4
 * b4 as fp32, one after the other in device memory, torch Linear layouts. hidden <= 128. */
CSG_API int csg_ensemble_gated(csg_context *ctx, csg_stream stream, const float *d_yi, int64_t ldi, csg_type yo_type,
                               const void *d_yo, int64_t ldo, const int32_t *d_count, int32_t capacity, int C,
                               int hidden, const float *d_gate, float *d_ye, int64_t lde);
CSG_API int csg_ensemble_entropy(csg_context *ctx, csg_stream stream, const float *d_yi, int64_t ldi, csg_type yo_type,
                                 const void *d_yo, int64_t ldo, const int32_t *d_count, int32_t capacity, int C,
                                 float *d_ye, int64_t lde);
CSG_API int csg_scatter_labels(csg_context *ctx, csg_stream stream, uint8_t *d_labels, uint8_t *d_confidence, int H,
                               int W, const int32_t *d_coords, const int32_t *d_count, int32_t capacity,
                               const float *d_logits, int64_t ld, int C);

/* ---- frames --------------------------------------------------------------------------------------------------- */
/* uint8 RGB [H0,W0,3] -> normalised NCHW (fp16 or fp32) [3,h,w]: resized into the rectangle (top, left, rows, columns)
 * of the h x w picture with Pillow's antialiased bilinear filter (triangle of width max(1, scale); 8-bit result between
 * the passes as Pillow has it, so that CPU and GPU pipelines see the same picture), outside it `pad` (0..255 per
 * network channel); value = (v - mean[c]) / std[c], channel c = image channel 2-c when bgr. d_small u8
 * [rows,columns,3]: the resized picture itself. d_out or d_small may be NULL. Along x first, then along y; Pillow 13
 * does so too unless the height shrinks much more than the width. */
typedef struct {
  int32_t top, left, rows, columns;
  float mean[3], std[3], pad[3];
  int32_t bgr;
} csg_fit;
CSG_API size_t csg_resize_workspace(int H0, int W0, int rows, int columns);
CSG_API int csg_prepare_frame(csg_context *ctx, csg_stream stream, const uint8_t *d_frame, int H0, int W0,
                              const csg_fit *fit, csg_type type, void *d_out, int h, int w, uint8_t *d_small,
                              void *d_workspace, size_t workspace_bytes);
/* A map uint8 [H,W] of the canvas, such as labels, at the frame's own size: d_out uint8 [H0,W0], pixel (y,x) = that of
 * the rectangle (top, left) + rows x columns of the map at (floor((2y+1) rows / 2 H0), floor((2x+1) columns / 2 W0)).
 * In one launch. The CPU pipeline has the same rule (runtime/geometry.py). */
CSG_API int csg_to_frame(csg_context *ctx, csg_stream stream, const uint8_t *d_map, int H, int W, int top, int left,
                         int rows, int columns, uint8_t *d_out, int H0, int W0);
/* uint8 RGB [H,W,3] = round(((255 - a) * frame + a * colour of the label) / 255) with a = floor(255 * alpha + 0.5); ids
 * without a colour leave the frame. The CPU pipeline has the same rule (runtime/overlay.py). */
CSG_API int csg_overlay(csg_context *ctx, csg_stream stream, const uint8_t *d_frame, const uint8_t *d_labels, int H,
                        int W, const uint8_t *d_palette, int colours, float alpha, uint8_t *d_out);

/* ---- conversion ------------------------------------------------------------------------------------------------- */
/* Rows of one type to another, for the borders of fp16 and int8 regions; int8: clamp(rint(v / quant)) or q * quant.
 * Columns `columns` .. ldy are written as zeros. */
CSG_API int csg_convert_rows(csg_context *ctx, csg_stream stream, csg_type from, const void *d_x, int64_t ldx,
                             csg_type to, void *d_y, int64_t ldy, const int32_t *d_count, int32_t capacity, int columns,
                             float quant);

#ifdef __cplusplus
}
#endif
#endif

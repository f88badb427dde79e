// csg_sparse_conv: checks, choice of the kernel, launch.
#include <algorithm>
#include <cmath>

#include "launch.h"

namespace crispseg {
namespace {

const char *const type_names[] = {"fp32", "fp16", "int8"};
bool is_type(csg_type t) { return t == CSG_F32 || t == CSG_F16 || t == CSG_I8; }
int size_of(csg_type t) { return t == CSG_F32 ? 4 : t == CSG_F16 ? 2 : 1; }
bool aligned(const void *p, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

// How a convolution is cut into blocks.
struct Plan {
  KernelId kernel;
  int rows, columns, threads, column_tiles, chunks;
  int64_t tiles;   // of `capacity` rows
  int64_t shares;  // most blocks that share tiles (see ConvShares), 0 = none do
  size_t shared;
};

#define CONV_CHOICE(type, family, columns) KernelId::csk_conv_##type##_##family##_128x##columns

Plan plan_of(const csg_context *ctx, const csg_conv &c) {
  Plan p{};
  p.rows = CONV_ROWS;
  p.threads = 128;
  const int padded = (c.cout + 15) / 16 * 16;
  const bool i8 = c.type == CSG_I8;
  if (c.type == CSG_F32) {
    p.kernel = KernelId::csk_conv_f32;
    p.rows = CONV_F32_ROWS;
    p.columns = 64;
    p.threads = 256;
  } else {
    p.chunks = (c.cin * size_of(c.type) + CONV_CHUNK - 1) / CONV_CHUNK;
    const size_t index = 4 * (CONV_ROWS + 4 + static_cast<size_t>(CONV_ROWS) * c.K);
    if (ctx->capability >= 80 && c.portable != 1) {
      // A column costs about 1.25 times as much in a tile of 64 as in one of 128.
      const int wide = (padded + 127) / 128 * 128 * 4, narrow = (padded + 63) / 64 * 64 * 5;
      p.columns = padded <= 32 ? 32 : padded <= 64 || narrow < wide ? 64 : 128;
      p.kernel = p.columns == 32   ? (i8 ? CONV_CHOICE(i8, mma, 32) : CONV_CHOICE(f16, mma, 32))
                 : p.columns == 64 ? (i8 ? CONV_CHOICE(i8, mma, 64) : CONV_CHOICE(f16, mma, 64))
                                   : (i8 ? CONV_CHOICE(i8, mma, 128) : CONV_CHOICE(f16, mma, 128));
      const KernelId own = i8 ? CONV_CHOICE(i8, wgmma, 128) : CONV_CHOICE(f16, wgmma, 128);
      p.shared = static_cast<size_t>(CONV_MMA_STAGES) * (CONV_ROWS + p.columns) * CONV_CHUNK + index;
      if (p.columns == 128 && !c.portable && ctx->kernels[static_cast<int>(own)].function) {
        p.kernel = own;
        p.shared += CONV_WGMMA_ALIGN;
      }
    } else {
      p.columns = padded <= 32 ? 32 : 64;
      p.kernel = p.columns == 32 ? (i8 ? CONV_CHOICE(i8, wmma, 32) : CONV_CHOICE(f16, wmma, 32))
                                 : (i8 ? CONV_CHOICE(i8, wmma, 64) : CONV_CHOICE(f16, wmma, 64));
      p.shared = static_cast<size_t>(2) * (CONV_ROWS + p.columns) * CONV_WMMA_PITCH + index;
    }
  }
  p.column_tiles = (c.cout + p.columns - 1) / p.columns;
  p.tiles = (static_cast<int64_t>(c.capacity) + p.rows - 1) / p.rows * p.column_tiles;
  const int64_t steps = static_cast<int64_t>(c.K) * p.chunks, blocks = 2 * ctx->multiprocessors;
  // From twice as many tiles as fit at once on, the last ones weigh little. (2^30: ConvShares counts steps in 32 bits.)
  if (p.columns == CONV_SHARE_COLUMNS && p.tiles <= 2 * blocks && p.tiles * steps < 1 << 30) {
    p.shares = std::min(blocks, p.tiles * steps / CONV_SHARE_STEPS);
    if (p.shares < 2) p.shares = 0;
  }
  return p;
}

size_t workspace_of(const Plan &p) { return static_cast<size_t>(p.shares) * 2 * p.rows * p.columns * 4; }

int check_size(const csg_context *ctx, const csg_conv *c, const char *who) {
  CSG_CHECK(ctx && c, "%s: context or convolution is NULL", who);
  CSG_CHECK(is_type(c->type), "%s: type %d, expected fp32 (0), fp16 (1) or int8 (2)", who, static_cast<int>(c->type));
  CSG_CHECK(c->K >= 1 && c->K <= CONV_MAX_TAPS, "%s: K = %d, expected 1..%d", who, c->K,
            static_cast<int>(CONV_MAX_TAPS));
  CSG_CHECK(c->cin >= 1 && c->cin <= 1 << 16 && c->cout >= 1 && c->cout <= 1 << 16,
            "%s: cin = %d, cout = %d, expected 1..65536", who, c->cin, c->cout);
  CSG_CHECK(c->capacity >= 0, "%s: capacity %d, expected at least 0", who, c->capacity);
  return CSG_OK;
}

// One matrix of rows; `columns` that are read or written.
int check_matrix(const char *name, csg_type type, const void *p, int64_t ld, int columns, ConvMatrix *out) {
  CSG_CHECK(is_type(type), "csg_sparse_conv: type %d of %s, expected fp32 (0), fp16 (1) or int8 (2)",
            static_cast<int>(type), name);
  const int size = size_of(type);
  CSG_CHECK(ld >= columns, "csg_sparse_conv: rows of %s are %lld elements apart, expected at least %d", name,
            static_cast<long long>(ld), columns);
  CSG_CHECK(aligned(p, size), "csg_sparse_conv: address of %s is not a multiple of %d", name, size);
  const bool wide = aligned(p, 16) && ld * size % 16 == 0;
  CSG_CHECK(wide || type == CSG_F32,
            "csg_sparse_conv: address and rows of %s (%s) must be multiples of 16 bytes; rows are %lld bytes apart",
            name, type_names[type], static_cast<long long>(ld) * size);
  *out = ConvMatrix{const_cast<void *>(p), ld, static_cast<int>(type), wide ? 1 : 0, 1.0f};
  return CSG_OK;
}

int check_output(const char *name, csg_type type, void *p, int64_t ld, int columns, float quant, ConvMatrix *out) {
  CSG_TRY(check_matrix(name, type, p, ld, columns, out));
  CSG_CHECK(type != CSG_I8 || (std::isfinite(quant) && quant > 0),
            "csg_sparse_conv: scale of the int8 output %s is %g, expected more than 0", name, quant);
  out->quant = quant;
  return CSG_OK;
}

int arguments_of(const csg_context *ctx, const csg_conv &c, const Plan &p, ConvArgs *a) {
  const bool packed = c.type != CSG_F32;
  const int size = size_of(c.type), group = c.type == CSG_I8 ? 32 : 16;
  const int read = packed ? (c.cin + group - 1) / group * group : c.cin;
  ConvMatrix x;
  CSG_CHECK(c.d_x && c.d_weight && c.d_count, "csg_sparse_conv: x, weight or count is NULL");
  CSG_TRY(check_matrix("x", c.type, c.d_x, c.ldx, read, &x));
  CSG_CHECK(c.ldx < (1 << 24), "csg_sparse_conv: rows of x are %lld elements apart, expected less than 2^24",
            static_cast<long long>(c.ldx));
  CSG_CHECK(c.d_map || c.K == 1, "csg_sparse_conv: no kernel map with K = %d; only K = 1 goes without", c.K);
  CSG_CHECK(aligned(c.d_weight, packed ? 16 : 4), "csg_sparse_conv: address of the weights is not a multiple of 16");
  CSG_CHECK((c.type == CSG_I8) == (c.d_dequant != nullptr),
            "csg_sparse_conv: dequant goes with int8 weights, and only with them; type is %s", type_names[c.type]);
  CSG_CHECK(c.d_y || c.d_z[0] || c.d_z[1], "csg_sparse_conv: no output");
  a->x = c.d_x;
  a->x_stride = static_cast<int>(packed ? c.ldx * size : c.ldx);
  a->x_pieces = read * size / 16;
  a->taps = c.K;
  a->cin = c.cin;
  a->cout = c.cout;
  a->cout_padded = (c.cout + 15) / 16 * 16;
  a->chunks = p.chunks;
  a->map = c.d_map;
  a->order = c.d_order;
  a->count = c.d_count;
  a->capacity = c.capacity;
  a->column_tiles = p.column_tiles;
  a->weight = c.d_weight;
  a->bias = c.d_bias;
  a->dequant = c.d_dequant;
  a->relu = c.relu != 0;
  a->wide_channels = aligned(c.d_bias, 16) && aligned(c.d_dequant, 16);
  for (int i = 0; i < 2; ++i)
    if (c.d_z[i] && !(aligned(c.d_scale[i], 16) && aligned(c.d_shift[i], 16))) a->wide_channels = 0;
  a->multiprocessors = ctx->multiprocessors;
  if (c.d_residual) {
    CSG_CHECK(c.residual_type != CSG_I8, "csg_sparse_conv: an int8 residual; expected fp32 or fp16");
    CSG_TRY(check_matrix("residual", c.residual_type, c.d_residual, c.ldr, c.cout, &a->residual));
    CSG_CHECK(c.d_residual != c.d_y || (c.residual_type == c.y_type && c.ldr == c.ldy),
              "csg_sparse_conv: residual and y share memory but differ in type or stride");
  }
  if (c.d_y) CSG_TRY(check_output("y", c.y_type, c.d_y, c.ldy, c.cout, c.y_quant, &a->out[0]));
  for (int i = 0; i < 2; ++i) {
    if (!c.d_z[i]) continue;
    CSG_CHECK(c.d_scale[i] && c.d_shift[i], "csg_sparse_conv: output z%d without scale or shift", i + 1);
    CSG_TRY(check_output(i ? "z2" : "z1", c.z_type[i], c.d_z[i], c.ldz[i], c.cout, c.z_quant[i], &a->out[1 + i]));
    a->scale[i] = c.d_scale[i];
    a->shift[i] = c.d_shift[i];
  }
  return CSG_OK;
}

}  // namespace
}  // namespace crispseg

using namespace crispseg;

size_t csg_conv_workspace(const csg_context *ctx, const csg_conv *conv) {
  if (check_size(ctx, conv, "csg_conv_workspace") != CSG_OK) return 0;
  return workspace_of(plan_of(ctx, *conv));
}

int csg_sparse_conv(csg_context *ctx, csg_stream stream, const csg_conv *conv) {
  CSG_TRY(check_size(ctx, conv, "csg_sparse_conv"));
  const csg_conv &c = *conv;
  const Plan p = plan_of(ctx, c);
  ConvArgs a{};
  CSG_TRY(arguments_of(ctx, c, p, &a));
  if (c.capacity == 0) return CSG_OK;
  int64_t blocks = p.tiles;
  const size_t bytes = workspace_of(p);
  if (bytes && c.d_workspace) {
    CSG_CHECK(c.workspace_bytes >= bytes && aligned(c.d_workspace, 16),
              "csg_sparse_conv: workspace of %zu bytes at %p, expected %zu bytes at a multiple of 16",
              c.workspace_bytes, c.d_workspace, bytes);
    a.partial = c.d_workspace;
    blocks = std::max(p.tiles, p.shares);
  }
  CSG_CHECK(blocks < 1LL << 31, "csg_sparse_conv: capacity %d x %d channels is more than one launch holds", c.capacity,
            c.cout);
  void *parameters[] = {&a, nullptr};
  CSG_TRY(launch_raw(ctx, p.kernel, Dim(static_cast<unsigned>(blocks)), Dim(p.threads), p.shared, stream, parameters));
  if (!a.partial) return CSG_OK;
  const unsigned grid = div_up(c.capacity, 128 / (CONV_SHARE_COLUMNS / 8)) * p.column_tiles;
  return c.type == CSG_I8 ? launch(ctx, kernel::csk_conv_i32_reduce, grid, 128, 0, stream, a)
                          : launch(ctx, kernel::csk_conv_f32_reduce, grid, 128, 0, stream, a);
}

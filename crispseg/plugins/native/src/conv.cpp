// cs_sparse_conv: checks, cutting of the work into blocks, gathering of row pointers; weight packing.
#include <atomic>
#include <cstring>

#include "conv_driver.h"

namespace crispseg {

namespace {

constexpr int64_t kMaxBlockRows = 960;

// How a convolution is cut: `blocks` blocks of `rows` output rows, each cut into `groups` groups of panels. Which
// numbers come out has no influence on the results.
struct Cut {
  int64_t rows, blocks;
  int groups, panels, panels_per_group;
};

Cut cut(const ConvKernels &k, const cs_conv &c, int threads) {
  const int64_t live = (c.cin < k.max_steps ? c.cin : k.max_steps) * static_cast<int64_t>(sizeof(float));
  int64_t rows = input_bytes() / live;
  rows = rows > kMaxBlockRows ? kMaxBlockRows : rows;
  Cut r;
  r.blocks = ceil_div(c.n_out, rows);
  if (r.blocks < 8 * threads) r.blocks = round_up(r.blocks, threads);
  r.rows = round_up(ceil_div(c.n_out, r.blocks), k.mr);
  r.blocks = ceil_div(c.n_out, r.rows);
  r.panels = static_cast<int>(ceil_div(c.cout, k.width));
  // Several threads want some units of work each, so that a slow core does not hold up the others; the panels of a block
  // go to different units for that. A unit gathers its rows anew, so it should hold a few panels, except when the
  // threads would go without work.
  const int64_t units = threads == 1 ? 1 : 4 * threads;
  const int64_t few = r.blocks < threads ? 1 : 4;
  const int64_t share = ceil_div(r.panels, ceil_div(units, r.blocks));
  r.panels_per_group = static_cast<int>(share > few ? share : few < r.panels ? few : r.panels);
  r.groups = static_cast<int>(ceil_div(r.panels, r.panels_per_group));
  return r;
}

// Scratch of one worker for the ConvRows of a block.
size_t rows_bytes(int64_t rows, int K, int mr) {
  return static_cast<size_t>(
      round_up(rows * K * sizeof(void *) + rows / mr * sizeof(uint32_t) + rows * sizeof(int32_t), 64));
}

ConvRows rows_at(char *memory, int64_t rows, int K, int mr) {
  char *const taps = memory + rows * K * sizeof(void *), *const out = taps + rows / mr * sizeof(uint32_t);
  return {reinterpret_cast<const float **>(memory), reinterpret_cast<uint32_t *>(taps), reinterpret_cast<int32_t *>(out)};
}

}  // namespace

// Everything about a convolution's arguments but its map.
int check_conv(const char *who, const cs_context *ctx, const cs_conv *c) {
  if (!ctx || !c) return fail(CS_BAD_ARGUMENT, "%s: no context or no arguments", who);
  if (bad_shape(c->K, c->cin, c->cout) || c->n_out < 0 || c->n_in < 0)
    return fail(CS_BAD_ARGUMENT, "%s: n_out = %d, n_in = %d, K = %d (1..%d), cin = %d, cout = %d out of range", who,
                c->n_out, c->n_in, c->K, kMaxTaps, c->cin, c->cout);
  if (!c->weight || reinterpret_cast<uintptr_t>(c->weight) % 64)
    return fail(CS_BAD_ARGUMENT, "%s: packed weights are missing or not aligned to 64 bytes", who);
  if (c->n_in > 0 && (!c->x || c->ldx < c->cin))
    return fail(CS_BAD_ARGUMENT, "%s: x is missing or ldx = %lld is below cin = %d", who,
                static_cast<long long>(c->ldx), c->cin);
  if (c->y && c->ldy < c->cout) return fail(CS_BAD_ARGUMENT, "%s: ldy is below cout = %d", who, c->cout);
  if (c->residual && c->ldr < c->cout) return fail(CS_BAD_ARGUMENT, "%s: ldr is below cout = %d", who, c->cout);
  for (int i = 0; i < 2; ++i)
    if (c->z[i] && (!c->scale[i] || !c->shift[i] || c->ldz[i] < c->cout))
      return fail(CS_BAD_ARGUMENT, "%s: z[%d] needs scale, shift and ldz >= cout = %d", who, i, c->cout);
  if (!c->y && !c->z[0] && !c->z[1]) return fail(CS_BAD_ARGUMENT, "%s: no output asked for", who);
  return CS_OK;
}

}  // namespace crispseg

extern "C" size_t cs_packed_bytes(const cs_context *ctx, int K, int cin, int cout) {
  using namespace crispseg;
  if (!ctx || bad_shape(K, cin, cout)) return 0;
  return static_cast<size_t>(padded(CS_PICK(ctx->isa, conv_kernels), cout)) * K * cin * sizeof(float);
}

// Packed: [panel][tap][cin][panel width], the last panel padded with zeros to whole vectors.
extern "C" int cs_pack_weight(const cs_context *ctx, const float *weight, int K, int cin, int cout, void *packed) {
  using namespace crispseg;
  if (!ctx || !weight || !packed || bad_shape(K, cin, cout))
    return fail(CS_BAD_ARGUMENT, "cs_pack_weight: missing pointer, or K = %d (1..%d), cin = %d, cout = %d out of range",
                K, kMaxTaps, cin, cout);
  const ConvKernels &k = CS_PICK(ctx->isa, conv_kernels);
  float *to = static_cast<float *>(packed);
  for (int col = 0; col < cout; col += k.width) {
    const int cols = cout - col < k.width ? cout - col : k.width, width = padded(k, cols);
    for (int64_t step = 0; step < static_cast<int64_t>(K) * cin; ++step, to += width) {
      std::memcpy(to, weight + step * cout + col, cols * sizeof(float));
      std::memset(to + cols, 0, (width - cols) * sizeof(float));
    }
  }
  return CS_OK;
}

extern "C" int cs_sparse_conv(cs_context *ctx, const cs_conv *conv) {
  using namespace crispseg;
  if (const int bad = check_conv("cs_sparse_conv", ctx, conv)) return bad;
  if (!conv->map && conv->n_out > 0 && (conv->K != 1 || conv->n_in != conv->n_out))
    return fail(CS_BAD_ARGUMENT, "cs_sparse_conv: no map is for K = 1 and n_in = n_out only; found K = %d, n_in = %d, "
                "n_out = %d", conv->K, conv->n_in, conv->n_out);
  if (conv->n_out == 0) return CS_OK;
  const ConvKernels &k = CS_PICK(ctx->isa, conv_kernels);
  const Cut work = cut(k, *conv, ctx->threads);
  const size_t row_bytes = rows_bytes(work.rows, conv->K, k.mr);
  const size_t acc = static_cast<size_t>(work.rows) * work.panels_per_group * k.width;
  const bool one_chunk = static_cast<int64_t>(conv->K) * conv->cin <= k.max_steps;
  char *memory = ctx->scratch<char>(kSlotConvRows, row_bytes * ctx->threads);
  float *sums = one_chunk ? nullptr : ctx->scratch<float>(kSlotConvAcc, acc * ctx->threads);
  if (!memory || (!one_chunk && !sums)) return CS_OUT_OF_MEMORY;

  std::atomic<bool> bad{false};
  parallel_for(ctx, work.blocks * work.groups, [&](int64_t unit, int worker) {
    const int64_t begin = unit / work.groups * work.rows;
    const int64_t end = begin + work.rows < conv->n_out ? begin + work.rows : conv->n_out;
    const int panel0 = static_cast<int>(unit % work.groups) * work.panels_per_group;
    const int panel1 = panel0 + work.panels_per_group < work.panels ? panel0 + work.panels_per_group : work.panels;
    const ConvRows g = rows_at(memory + row_bytes * worker, work.rows, conv->K, k.mr);
    const bool good = CS_PICK(ctx->isa, gather_kernels).gather(*conv, k.mr, begin, end, g);
    if (!good) {
      bad.store(true, std::memory_order_relaxed);
      return;
    }
    k.block(ConvBlock{conv, ceil_div(end - begin, k.mr), g, panel0, panel1,
                      sums ? sums + acc * worker : nullptr});
  });
  if (bad.load())
    return fail(CS_BAD_ARGUMENT, "cs_sparse_conv: the map or the order points outside of its rows (n_in = %d, n_out = %d)",
                conv->n_in, conv->n_out);
  return CS_OK;
}

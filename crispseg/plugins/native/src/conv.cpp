// cs_sparse_conv: checks, cutting of the work into blocks, gathering of row pointers; weight packing.
#include <unistd.h>

#include <atomic>
#include <cstring>

#include "conv_kernels.h"
#include "internal.h"

namespace crispseg {

namespace {

constexpr int kMaxChannels = 1 << 16;
constexpr int64_t kMaxBlockRows = 960;

// Half of the L2 cache: the part of the input that a block keeps there.
int64_t input_bytes() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  static const int64_t cache = sysconf(_SC_LEVEL2_CACHE_SIZE);
#else
  constexpr int64_t cache = 0;
#endif
  const int64_t half = cache / 2, least = 384 << 10, most = 1024 << 10;
  return half < least ? least : half > most ? most : half;
}

int padded(const ConvKernels &k, int cout) { return static_cast<int>(round_up(cout, k.lanes)); }

bool bad_shape(int K, int cin, int cout) {
  return K < 1 || K > kMaxTaps || cin < 1 || cin > kMaxChannels || cout < 1 || cout > kMaxChannels;
}

int check(const cs_context *ctx, const cs_conv *c) {
  const char *who = "cs_sparse_conv";
  if (!ctx || !c) return fail(CS_BAD_ARGUMENT, "%s: no context or no arguments", who);
  if (bad_shape(c->K, c->cin, c->cout) || c->n_out < 0 || c->n_in < 0)
    return fail(CS_BAD_ARGUMENT, "%s: n_out = %d, n_in = %d, K = %d (1..%d), cin = %d, cout = %d out of range", who,
                c->n_out, c->n_in, c->K, kMaxTaps, c->cin, c->cout);
  if (!c->map && (c->K != 1 || c->n_in != c->n_out))
    return fail(CS_BAD_ARGUMENT, "%s: no map is for K = 1 and n_in = n_out only; found K = %d, n_in = %d, n_out = %d",
                who, c->K, c->n_in, c->n_out);
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
  const int64_t wanted = r.blocks >= threads ? 1 : ceil_div(threads, r.blocks);
  r.panels_per_group = static_cast<int>(ceil_div(r.panels, wanted < r.panels ? wanted : r.panels));
  r.groups = static_cast<int>(ceil_div(r.panels, r.panels_per_group));
  return r;
}

// Scratch of one worker: row pointers, tap masks and output rows of a block, see ConvBlock.
struct Gathered {
  const float **rows;
  uint32_t *taps;
  int32_t *out;
  static size_t bytes(int64_t rows, int K, int mr) {
    const int64_t tiles = rows / mr;
    return static_cast<size_t>(round_up(rows * K * sizeof(void *) + tiles * sizeof(uint32_t) + rows * sizeof(int32_t), 64));
  }
  Gathered(char *memory, int64_t rows_, int K, int mr)
      : rows(reinterpret_cast<const float **>(memory)),
        taps(reinterpret_cast<uint32_t *>(memory + rows_ * K * sizeof(void *))),
        out(reinterpret_cast<int32_t *>(memory + rows_ * K * sizeof(void *) + rows_ / mr * sizeof(uint32_t))) {}
};

// Fills `g` for output positions [begin, end); false when the map or the order points outside. TAPS: K when it is known
// to the compiler, else 0.
template <int TAPS> bool gather(const cs_conv &c, int mr, int64_t begin, int64_t end, const Gathered &g) {
  const int taps = TAPS ? TAPS : c.K;
  const float *zero = c.x ? c.x - c.ldx : nullptr;
  const int64_t ld = c.ldx, tiles = ceil_div(end - begin, mr);
  uint32_t largest = 0;  // map entries + 1
  for (int64_t t = 0; t < tiles; ++t) {
    const float **rows = g.rows + t * taps * mr;
    int32_t *out = g.out + t * mr;
    uint32_t missing = ~uint32_t{0};
    for (int r = 0; r < mr; ++r) {
      const int64_t at = begin + t * mr + r;
      if (at >= end) {
        out[r] = -1;
        for (int k = 0; k < taps; ++k) rows[k * mr + r] = zero;
        continue;
      }
      const int64_t row = c.order ? c.order[at] : at;
      if (row < 0 || row >= c.n_out) return false;
      out[r] = static_cast<int32_t>(row);
      const int32_t *m = c.map + row * taps;
      uint32_t none = 0;
      for (int k = 0; k < taps; ++k) {
        const uint32_t from = static_cast<uint32_t>(m[k]) + 1u;
        largest = from > largest ? from : largest;
        none |= static_cast<uint32_t>(from == 0) << k;
        rows[k * mr + r] = zero + static_cast<int64_t>(from) * ld;
      }
      missing &= none;
    }
    g.taps[t] = ~missing & (0xffffffffu >> (32 - taps));
  }
  return largest <= static_cast<uint32_t>(c.n_in);
}

// The same without a map: output row i reads input row i.
bool gather_identity(const cs_conv &c, int mr, int64_t begin, int64_t end, const Gathered &g) {
  const float *zero = c.x ? c.x - c.ldx : nullptr;
  for (int64_t i = 0; i < round_up(end - begin, mr); ++i) {
    const int64_t at = begin + i, row = at >= end ? -1 : c.order ? c.order[at] : at;
    if (at < end && (row < 0 || row >= c.n_out)) return false;
    g.out[i] = static_cast<int32_t>(row);
    g.rows[i] = zero + (row + 1) * c.ldx;
    g.taps[i / mr] = 1;
  }
  return true;
}

}  // namespace

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
  if (const int bad = check(ctx, conv)) return bad;
  if (conv->n_out == 0) return CS_OK;
  const ConvKernels &k = CS_PICK(ctx->isa, conv_kernels);
  const Cut work = cut(k, *conv, ctx->threads);
  const size_t gathered = Gathered::bytes(work.rows, conv->K, k.mr);
  const size_t acc = static_cast<size_t>(work.rows) * work.panels_per_group * k.width;
  const bool one_chunk = static_cast<int64_t>(conv->K) * conv->cin <= k.max_steps;
  char *memory = ctx->scratch<char>(kSlotConvRows, gathered * ctx->threads);
  float *sums = one_chunk ? nullptr : ctx->scratch<float>(kSlotConvAcc, acc * ctx->threads);
  if (!memory || (!one_chunk && !sums)) return CS_OUT_OF_MEMORY;

  std::atomic<bool> bad{false};
  parallel_for(ctx, work.blocks * work.groups, [&](int64_t unit, int worker) {
    const int64_t begin = unit / work.groups * work.rows;
    const int64_t end = begin + work.rows < conv->n_out ? begin + work.rows : conv->n_out;
    const int panel0 = static_cast<int>(unit % work.groups) * work.panels_per_group;
    const int panel1 = panel0 + work.panels_per_group < work.panels ? panel0 + work.panels_per_group : work.panels;
    const Gathered g(memory + gathered * worker, work.rows, conv->K, k.mr);
    const bool good = !conv->map ? gather_identity(*conv, k.mr, begin, end, g)
                      : conv->K == 9 ? gather<9>(*conv, k.mr, begin, end, g) : gather<0>(*conv, k.mr, begin, end, g);
    if (!good) {
      bad.store(true, std::memory_order_relaxed);
      return;
    }
    k.block(ConvBlock{conv, ceil_div(end - begin, k.mr), g.rows, g.taps, g.out, panel0, panel1,
                      sums ? sums + acc * worker : nullptr});
  });
  if (bad.load())
    return fail(CS_BAD_ARGUMENT, "cs_sparse_conv: the map or the order points outside of its rows (n_in = %d, n_out = %d)",
                conv->n_in, conv->n_out);
  return CS_OK;
}

// cs_sparse_conv_int8 and what goes with it: checks, weight packing, quantisation of rows. The work is cut as that of
// the float32 convolution; all of that counts in words, here of four channels.
#include <cmath>
#include <cstring>

#include "conv_driver.h"
#include "conv_int8_kernels.h"

namespace crispseg {

namespace {

constexpr int kMaxProducts = 66000;  // of one sum: 255 * 127 * 66000 < 2^31

const ConvInt8Kernels &kernels(const cs_context *ctx) {
#if defined(CS_HAVE_AVX512VNNI)
  if (ctx->vnni && ctx->isa == Isa::avx512) return conv_int8_kernels_avx512vnni;
#endif
#if defined(CS_HAVE_AVXVNNI)
  if (ctx->vnni && ctx->isa == Isa::avx2) return conv_int8_kernels_avxvnni;
#endif
  return CS_PICK(ctx->isa, conv_int8_kernels);
}

bool bad_int8_shape(int K, int cin, int cout) {
  return bad_shape(K, cin, cout) || static_cast<int64_t>(K) * cin > kMaxProducts;
}

int quads(int cin) { return static_cast<int>(ceil_div(cin, kQuad)); }

bool bad_zero(int32_t zero) { return zero != 0 && zero != 128; }

// The rows of bytes that a conv reads and writes, beyond what check_conv knows.
int check_bytes(const char *who, const cs_conv_int8 &c) {
  if (bad_int8_shape(c.conv.K, c.conv.cin, c.conv.cout))
    return fail(CS_BAD_ARGUMENT, "%s: K * cin = %d * %d, expected at most %d", who, c.conv.K, c.conv.cin, kMaxProducts);
  if (c.conv.x2) return fail(CS_BAD_ARGUMENT, "%s: x2: expected none", who);
  if (!c.scale) return fail(CS_BAD_ARGUMENT, "%s: no scale", who);
  if (bad_zero(c.zero)) return fail(CS_BAD_ARGUMENT, "%s: zero = %d, expected 0 or 128", who, c.zero);
  if (c.conv.n_in > 0 && c.conv.ldx % kQuad)
    return fail(CS_BAD_ARGUMENT, "%s: ldx = %lld is no multiple of 4 bytes", who, static_cast<long long>(c.conv.ldx));
  for (int i = 0; i < 3; ++i)
    if (!(c.step[i] >= 0) || std::isinf(c.step[i]) || bad_zero(c.out_zero[i]))
      return fail(CS_BAD_ARGUMENT, "%s: output %d has step %g (expected 0 or more) or zero %d (0 or 128)", who, i,
                  static_cast<double>(c.step[i]), c.out_zero[i]);
  return CS_OK;
}

}  // namespace

}  // namespace crispseg

extern "C" const char *cs_int8_kernels(const cs_context *ctx) { return ctx ? crispseg::kernels(ctx).name : ""; }

extern "C" size_t cs_packed_bytes_int8(const cs_context *ctx, int K, int cin, int cout) {
  using namespace crispseg;
  if (!ctx || bad_int8_shape(K, cin, cout)) return 0;
  const size_t columns = static_cast<size_t>(padded(CS_PICK(ctx->isa, conv_kernels).shape, cout));
  return columns * K * (quads(cin) + 1) * sizeof(int32_t);
}

// Packed: [panel][tap][quad][panel width][4 channels], then [panel][tap][panel width] int32, the sums of the weights of
// a tap and column. The last panel is padded with zeros to whole vectors, the last quad to four channels.
extern "C" int cs_pack_weight_int8(const cs_context *ctx, const int8_t *weight, int K, int cin, int cout,
                                   void *packed) {
  using namespace crispseg;
  if (!ctx || !weight || !packed || bad_int8_shape(K, cin, cout))
    return fail(CS_BAD_ARGUMENT, "cs_pack_weight_int8: missing pointer, or K = %d (1..%d), cin = %d, cout = %d out of "
                "range (K * cin up to %d)", K, kMaxTaps, cin, cout, kMaxProducts);
  const ConvShape &k = CS_PICK(ctx->isa, conv_kernels).shape;
  int8_t *to = static_cast<int8_t *>(packed);
  int32_t *sum = reinterpret_cast<int32_t *>(to + static_cast<int64_t>(padded(k, cout)) * K * quads(cin) * kQuad);
  for (int col = 0; col < cout; col += k.width) {
    const int cols = cout - col < k.width ? cout - col : k.width, width = padded(k, cols);
    for (int tap = 0; tap < K; ++tap, sum += width) {
      std::memset(sum, 0, width * sizeof(int32_t));
      for (int c = 0; c < quads(cin) * kQuad; c += kQuad, to += width * kQuad)
        for (int i = 0; i < width; ++i)
          for (int j = 0; j < kQuad; ++j) {
            const bool inside = i < cols && c + j < cin;
            const int8_t w = inside ? weight[(static_cast<int64_t>(tap) * cin + c + j) * cout + col + i] : int8_t{0};
            to[i * kQuad + j] = w;
            sum[i] += w;
          }
    }
  }
  return CS_OK;
}

extern "C" int cs_sparse_conv_int8(cs_context *ctx, const cs_conv_int8 *conv) {
  using namespace crispseg;
  static const char who[] = "cs_sparse_conv_int8";
  if (const int bad = check_conv(who, ctx, conv ? &conv->conv : nullptr)) return bad;
  if (const int bad = check_bytes(who, *conv)) return bad;
  if (const int bad = check_map(who, &conv->conv)) return bad;
  cs_conv words = conv->conv;  // the same rows in words
  words.ldx /= kQuad;
  const ConvInt8Kernels &k = kernels(ctx);
  return run_blocks(ctx, who, words, CS_PICK(ctx->isa, conv_kernels).shape, quads(words.cin),
                    [&](const ConvBlock &block) { k.block(block, *conv); });
}

extern "C" int cs_quantise_rows(cs_context *ctx, const float *x, int64_t ldx, int32_t n, int c, float step, int zero,
                                uint8_t *q, int64_t ldq) {
  using namespace crispseg;
  if (!ctx || n < 0 || c < 1 || (n > 0 && (!x || !q || ldx < c || ldq < c)) || !(step > 0) || std::isinf(step) ||
      bad_zero(zero))
    return fail(CS_BAD_ARGUMENT, "cs_quantise_rows: missing pointer, or n = %d, c = %d, step = %g, zero = %d or a "
                "stride out of range", n, c, static_cast<double>(step), zero);
  constexpr int64_t rows = 512;
  const int64_t padded_c = round_up(c, kQuad), fill = (padded_c < ldq ? padded_c : ldq) - c;
  const ConvInt8Kernels &k = kernels(ctx);
  parallel_for(ctx, ceil_div(n, rows), [&](int64_t block, int) {
    const int64_t end = (block + 1) * rows < n ? (block + 1) * rows : n;
    for (int64_t row = block * rows; row < end; ++row) {
      k.quantise(x + row * ldx, c, step, zero, q + row * ldq);
      std::memset(q + row * ldq + c, zero, static_cast<size_t>(fill));
    }
  });
  return CS_OK;
}

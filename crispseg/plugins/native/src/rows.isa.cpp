// Row-wise kernels outside the U-Net: logits at the sites, softmax, labels, entropy ensembler.
#include "columns.h"
#include "rows_kernels.h"

namespace crispseg {
namespace {

void transpose(const float *planes, int64_t stride, int C, int64_t begin, int64_t end, float *pixels) {
  for (int64_t i = begin; i < end; i += VW) {
    const int n = end - i < VW ? static_cast<int>(end - i) : VW;
#if CS_VW == 16 && defined(__AVX512F__)
    const __mmask16 lanes = static_cast<__mmask16>((1u << n) - 1u);
    for (int c = 0; c < C; c += 16) {
      const int part = C - c < 16 ? C - c : 16;
      const __mmask16 mask = static_cast<__mmask16>((1u << part) - 1u);
      __m512 r[16];
      for (int j = 0; j < 16; ++j) r[j] = _mm512_maskz_loadu_ps(lanes, planes + (j < part ? c + j : c) * stride + i);
      transpose16(r);
      for (int j = 0; j < n; ++j) _mm512_mask_storeu_ps(pixels + (i + j) * C + c, mask, r[j]);
    }
#else
    for (int c = 0; c < C; ++c)
      for (int j = 0; j < n; ++j) pixels[(i + j) * C + c] = planes[c * stride + i + j];
#endif
  }
}

void logits_at(const LogitsAtJob &job, int32_t begin, int32_t end) {
  const int C = job.C;
  for (int32_t i = begin; i < end; ++i) {
    const int y = job.coords[2 * static_cast<int64_t>(i)], x = job.coords[2 * static_cast<int64_t>(i) + 1];
    const int ya = job.y0[y], xa = job.x0[x];
    float *out = job.y + i * job.ldy;
    const float *p00 = job.pixels + (static_cast<int64_t>(ya) * job.w + xa) * C;
    if (!job.fy) {
      memcpy(out, p00, static_cast<size_t>(C) * sizeof(float));
      continue;
    }
    const int64_t right = xa + 1 < job.w ? C : 0, down = ya + 1 < job.h ? static_cast<int64_t>(job.w) * C : 0;
    const float *p01 = p00 + right, *p10 = p00 + down, *p11 = p10 + right;
    // Vertical first, then horizontal: the order of the front end.
    const vf fy = splat(job.fy[y]), fx = splat(job.fx[x]);
    const auto mix = [&](vf a, vf b, vf c, vf d) {
      const vf l = a + fy * (c - a), r = b + fy * (d - b);
      return l + fx * (r - l);
    };
    int c = 0;
    for (; c + VW <= C; c += VW) store(out + c, mix(load(p00 + c), load(p01 + c), load(p10 + c), load(p11 + c)));
    if (c < C) {
      const int k = C - c;
      store_part(out + c,
                 mix(load_part(p00 + c, k), load_part(p01 + c, k), load_part(p10 + c, k), load_part(p11 + c, k)), k);
    }
  }
}

void softmax(const float *x, int64_t ldx, int32_t n, int C, float *y, int64_t ldy, float *work) {
  for (int32_t i = 0; i < n; i += VW) {
    const int k = n - i < VW ? n - i : VW;
    to_columns(x + i * ldx, ldx, k, C, work, VW);
    const Peak peak = peak_of(work, VW, C);
    const vf scale = 1.0f / exponentials(work, VW, C, peak.value, work);
    for (int c = 0; c < C; ++c) store(work + c * VW, load(work + c * VW) * scale);
    to_rows(work, VW, k, C, y + i * ldy, ldy);
  }
}

void scatter(const float *x, int64_t ldx, const int32_t *coords, int32_t n, int C, int W, uint8_t *labels,
             uint8_t *confidence, float *work) {
  for (int32_t i = 0; i < n; i += VW) {
    const int k = n - i < VW ? n - i : VW;
    to_columns(x + i * ldx, ldx, k, C, work, VW);
    const Peak peak = peak_of(work, VW, C);
    vi sure = {};
    if (confidence) sure = confidence_of(exponentials(work, VW, C, peak.value, work));
    for (int j = 0; j < k; ++j) {
      const int32_t *at = coords + 2 * static_cast<int64_t>(i + j);
      const int64_t pixel = static_cast<int64_t>(at[0]) * W + at[1];
      labels[pixel] = static_cast<uint8_t>(peak.index[j]);
      if (confidence) confidence[pixel] = static_cast<uint8_t>(sure[j]);
    }
  }
}

inline vf entropy_block(const float *x, int64_t ld, int n, int C, float *columns, float *exps) {
  to_columns(x, ld, n, C, columns, VW);
  const Peak peak = peak_of(columns, VW, C);
  const vf sum = exponentials(columns, VW, C, peak.value, exps);
  return entropy_of(columns, exps, VW, C, peak.value, sum);
}

void pick_certain(const float *yi, int64_t ldi, const float *yo, int64_t ldo, int32_t n, int C, float *ye, int64_t lde,
                  float *work) {
  for (int32_t i = 0; i < n; i += VW) {
    const int k = n - i < VW ? n - i : VW;
    const vf low = entropy_block(yi + i * ldi, ldi, k, C, work, work + C * VW);
    const vf own = entropy_block(yo + i * ldo, ldo, k, C, work, work + C * VW);
    const vi keep = low < own;
    for (int j = 0; j < k; ++j) {
      const float *from = keep[j] ? yi + (i + j) * ldi : yo + (i + j) * ldo;
      float *to = ye + (i + j) * lde;
      if (to != from) memmove(to, from, static_cast<size_t>(C) * sizeof(float));
    }
  }
}

}  // namespace

const RowsKernels CS_NAME(rows_kernels) = {transpose, logits_at, softmax, scatter, pick_certain};

}  // namespace crispseg

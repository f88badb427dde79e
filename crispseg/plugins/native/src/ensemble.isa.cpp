// SparseRefine's gated ensembler on blocks of rows held as columns: every layer is a small matrix product whose right
// operand (kBlock rows) stays in L1, and whose weights are broadcast.
#include "columns.h"
#include "rows_kernels.h"

namespace crispseg {
namespace {

constexpr int kVectors = 2;                      // vectors of rows in a block
constexpr int kBlock = kVectors * VW;            // rows of a block
constexpr int kOutputs = VW == 16 ? 8 : 4;       // outputs accumulated together (registers)

// The first kCount of kOutputs outputs, of which `n` are stored.
template <bool Relu, int kCount>
inline void outputs_of(const float *in, int inputs, const float *weight, const float *bias, int n, float *out) {
  vf sum[kCount][kVectors];
  for (int j = 0; j < kCount; ++j)
    for (int v = 0; v < kVectors; ++v) sum[j][v] = splat(bias[j]);
  for (int k = 0; k < inputs; ++k, weight += kOutputs, in += kBlock) {
    vf value[kVectors];
    for (int v = 0; v < kVectors; ++v) value[v] = load(in + v * VW);
    for (int j = 0; j < kCount; ++j) {
      const vf factor = splat(weight[j]);
      for (int v = 0; v < kVectors; ++v) sum[j][v] += factor * value[v];
    }
  }
  for (int j = 0; j < n; ++j)
    for (int v = 0; v < kVectors; ++v)
      // NaN stays NaN: vmax returns its second operand then.
      store(out + static_cast<int64_t>(j) * kBlock + v * VW, Relu ? vmax(vf{}, sum[j][v]) : sum[j][v]);
}

// out[o] = act(bias[o] + sum_k weight[o/kOutputs][k][o%kOutputs] * in[k]); `in` and `out` are [.][kBlock].
template <bool Relu>
inline void linear(const float *in, int inputs, const float *weight, const float *bias, int outputs, float *out) {
  for (; outputs > kOutputs / 2; outputs -= kOutputs, bias += kOutputs, out += kOutputs * kBlock) {
    outputs_of<Relu, kOutputs>(in, inputs, weight, bias, outputs < kOutputs ? outputs : kOutputs, out);
    weight += static_cast<int64_t>(inputs) * kOutputs;
  }
  if (outputs > 0) outputs_of<Relu, kOutputs / 2>(in, inputs, weight, bias, outputs, out);
}

int64_t work_floats(int C, int hidden) {
  return static_cast<int64_t>(kBlock) * (2 * C + 2 * C + 2 + hidden + 2);
}

void gated(const GateJob &job, int32_t begin, int32_t end, float *work) {
  const int C = job.C;
  float *low = work, *own = low + static_cast<int64_t>(C) * kBlock;  // yi, yo
  float *gate_in = own + static_cast<int64_t>(C) * kBlock;           // softmax(yi), E(yi), softmax(yo), E(yo)
  float *hidden = gate_in + static_cast<int64_t>(2 * C + 2) * kBlock;
  float *gate = hidden + static_cast<int64_t>(job.hidden) * kBlock;
  for (int32_t i = begin; i < end; i += kBlock) {
    const int rows = end - i < kBlock ? end - i : kBlock;
    for (int v = 0; v < kVectors; ++v) {
      // A vector without rows of its own repeats the last row.
      const int first = v * VW < rows ? v * VW : rows - 1;
      const int n = rows - first < VW ? rows - first : VW;
      to_columns(job.yi + (i + first) * job.ldi, job.ldi, n, C, low + v * VW, kBlock);
      to_columns(job.yo + (i + first) * job.ldo, job.ldo, n, C, own + v * VW, kBlock);
      for (int s = 0; s < 2; ++s) {
        const float *x = (s ? own : low) + v * VW;
        float *p = gate_in + static_cast<int64_t>(s) * (C + 1) * kBlock + v * VW;
        const Peak peak = peak_of(x, kBlock, C);
        const vf sum = exponentials(x, kBlock, C, peak.value, p);
        store(p + static_cast<int64_t>(C) * kBlock, entropy_of(x, p, kBlock, C, peak.value, sum));
        const vf scale = 1.0f / sum;
        for (int c = 0; c < C; ++c, p += kBlock) store(p, load(p) * scale);
      }
    }
    linear<true>(gate_in, 2 * C + 2, job.w1, job.b1, job.hidden, hidden);
    linear<false>(hidden, job.hidden, job.w2, job.b2, 2, gate);
    for (int v = 0; v < kVectors; ++v) {
      const vf z0 = load(gate + v * VW), z1 = load(gate + kBlock + v * VW), top = vmax(z0, z1);
      const vf e0 = vexp(vmax(splat(kExpFloor), z0 - top)), e1 = vexp(vmax(splat(kExpFloor), z1 - top));
      const vf scale = 1.0f / (e0 + e1), g0 = e0 * scale, g1 = e1 * scale;
      for (int c = 0; c < C; ++c) {
        float *at = low + static_cast<int64_t>(c) * kBlock + v * VW;
        store(at, g0 * load(at) + g1 * load(own + static_cast<int64_t>(c) * kBlock + v * VW));
      }
    }
    linear<true>(low, C, job.w3, job.b3, job.hidden, hidden);
    linear<false>(hidden, job.hidden, job.w4, job.b4, C, own);
    for (int v = 0; v * VW < rows; ++v) {
      const int n = rows - v * VW < VW ? rows - v * VW : VW;
      to_rows(own + v * VW, kBlock, n, C, job.ye + (i + v * VW) * job.lde, job.lde);
    }
  }
}

}  // namespace

const EnsembleKernels CS_NAME(ensemble_kernels) = {kOutputs, kBlock, work_floats, gated};

}  // namespace crispseg

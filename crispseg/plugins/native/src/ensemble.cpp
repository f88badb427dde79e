// cs_ensemble_gated: packs the four small matrices for the kernel, then runs blocks of rows.
#include "internal.h"
#include "rows_kernels.h"

namespace crispseg {
namespace {

// weight [outputs, inputs] -> [ceil(outputs / tile)][inputs][tile]; returns the end of what it wrote.
float *pack(const float *weight, int outputs, int inputs, int tile, float *to) {
  for (int o = 0; o < outputs; o += tile)
    for (int k = 0; k < inputs; ++k)
      for (int j = 0; j < tile; ++j)
        *to++ = o + j < outputs ? weight[static_cast<int64_t>(o + j) * inputs + k] : 0.0f;
  return to;
}

float *pad(const float *bias, int outputs, int tile, float *to) {
  for (int o = 0; o < round_up(outputs, tile); ++o) *to++ = o < outputs ? bias[o] : 0.0f;
  return to;
}

}  // namespace
}  // namespace crispseg

extern "C" int cs_ensemble_gated(cs_context *ctx, const float *yi, int64_t ldi, const float *yo, int64_t ldo, int32_t n,
                                 const cs_gate *gate, float *ye, int64_t lde) {
  using namespace crispseg;
  if (!ctx || n < 0 || !gate || gate->C < 1 || gate->C > 256 || gate->hidden < 1 || gate->hidden > 65536)
    return fail(CS_BAD_ARGUMENT, "cs_ensemble_gated: n = %d, C or hidden size out of range", n);
  if (n == 0) return CS_OK;
  const int C = gate->C, hidden = gate->hidden;
  if (!yi || !yo || !ye || ldi < C || ldo < C || lde < C)
    return fail(CS_BAD_ARGUMENT, "cs_ensemble_gated: null pointer, or row stride below C");
  if (!gate->w1 || !gate->b1 || !gate->w2 || !gate->b2 || !gate->w3 || !gate->b3 || !gate->w4 || !gate->b4)
    return fail(CS_BAD_ARGUMENT, "cs_ensemble_gated: a weight is null");
  const EnsembleKernels &kernels = CS_PICK(ctx->isa, ensemble_kernels);
  const int tile = kernels.tile;
  const int64_t wide = round_up(hidden, tile), two = round_up(2, tile), out = round_up(C, tile);
  const int64_t floats = wide * (2 * C + 2) + wide + two * hidden + two + wide * C + wide + out * hidden + out;
  const int64_t piece = round_up(kernels.work_floats(C, hidden), 64);
  float *packed = ctx->scratch<float>(kSlotEnsembleA, static_cast<size_t>(floats));
  float *work = ctx->scratch<float>(kSlotEnsembleB, static_cast<size_t>(piece) * ctx->threads);
  if (!packed || !work) return CS_OUT_OF_MEMORY;
  GateJob job{};
  job.C = C;
  job.hidden = hidden;
  job.yi = yi;
  job.yo = yo;
  job.ye = ye;
  job.ldi = ldi;
  job.ldo = ldo;
  job.lde = lde;
  float *at = packed;
  const auto layer = [&](const float *weight, const float *bias, int outputs, int inputs, const float **w,
                         const float **b) {
    *w = at;
    at = pack(weight, outputs, inputs, tile, at);
    *b = at;
    at = pad(bias, outputs, tile, at);
  };
  layer(gate->w1, gate->b1, hidden, 2 * C + 2, &job.w1, &job.b1);
  layer(gate->w2, gate->b2, 2, hidden, &job.w2, &job.b2);
  layer(gate->w3, gate->b3, hidden, C, &job.w3, &job.b3);
  layer(gate->w4, gate->b4, C, hidden, &job.w4, &job.b4);
  const int32_t rows = kernels.block_rows * 16;
  parallel_for(ctx, ceil_div(n, rows), [&](int64_t block, int worker) {
    const int32_t begin = static_cast<int32_t>(block) * rows;
    kernels.gated(job, begin, n - begin < rows ? n : begin + rows, work + worker * piece);
  });
  return CS_OK;
}

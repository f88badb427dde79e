// cs_fma_loop, see crispseg.h.
#include "internal.h"
#include "peak.h"

extern "C" double cs_fma_loop(cs_context *ctx, int64_t rounds) {
  using namespace crispseg;
  if (!ctx || rounds < 1) return 0.0;
  const PeakKernels &k = CS_PICK(ctx->isa, peak_kernels);
  double done = 0.0;
  float sink = 0.0f;
  done = k.fma_loop(rounds, &sink);
  return sink == 12345.0f ? 0.0 : done;  // the sums are used, so that the loop stays
}

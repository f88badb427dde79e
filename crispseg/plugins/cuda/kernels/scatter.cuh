// Classes of the refined rows into the label map, in place; confidence likewise.
#pragma once
#include "softmax.cuh"

CS_GLOBAL void CS_LAUNCH_BOUNDS(128) csk_scatter_labels(CsScatter a) {
  CS_SHARED(float, tile, [CS_ROW_BLOCK * CS_ROW_STRIDE]);
  const int n = cs_clamp(*a.count, 0, a.capacity);
#pragma unroll 1
  for (cs_i64 first = (cs_i64)blockIdx.x * CS_ROW_BLOCK; first < n; first += (cs_i64)gridDim.x * CS_ROW_BLOCK) {
    const int rows = (int)min(n - first, (cs_i64)CS_ROW_BLOCK);
    const CsRow row = cs_row_statistics(a.logits + first * a.ld, a.ld, rows, a.classes, a.confidence ? 2 : 1, tile);
    if ((int)threadIdx.x >= rows) continue;
    const int2 site = ((const int2 *)a.coords)[first + threadIdx.x];
    if ((cs_u32)site.x >= (cs_u32)a.height || (cs_u32)site.y >= (cs_u32)a.width) continue;
    const cs_i64 at = (cs_i64)site.x * a.width + site.y;
    a.labels[at] = (cs_u8)row.label;
    if (a.confidence) a.confidence[at] = cs_confidence(row.sum);
  }
}

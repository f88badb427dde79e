// From sums to the outputs: 8 columns of BATCH rows a lane, so that the loads of a batch are under way together. What
// is far away, the residual, is asked for first.
#pragma once
#include "mma.cuh"

CS_DEVICE void conv_bits(unsigned bits, float &v) { v = __uint_as_float(bits); }
CS_DEVICE void conv_bits(unsigned bits, int &v) { v = (int)bits; }
CS_DEVICE unsigned conv_bits_of(float v) { return __float_as_uint(v); }
CS_DEVICE unsigned conv_bits_of(int v) { return (unsigned)v; }

CS_DEVICE float conv_load(const ConvMatrix &m, cs_i64 at) {
  return m.type == CONV_F16 ? cs_half_to_float(((const cs_half *)m.data)[at]) : ((const float *)m.data)[at];
}

// The residual of a batch as it lies in memory (8 halves or 8 floats a row; rows of -1 are not read); what is not
// aligned for that comes as floats.
template <int BATCH>
CS_DEVICE void conv_fetch_residual(const ConvArgs &a, const int (&rows)[BATCH], int column, Words4 (&raw)[BATCH][2]) {
  const ConvMatrix &m = a.residual;
  if (!m.data) return;
  const int columns = min(a.cout - column, 8);
#pragma unroll
  for (int u = 0; u < BATCH; ++u) {
    if (rows[u] < 0) continue;
    const cs_i64 at = rows[u] * m.stride + column;
    if (columns < 8 || !m.wide) {
#pragma unroll
      for (int j = 0; j < 8; ++j) raw[u][j / 4].w[j % 4] = j < columns ? __float_as_uint(conv_load(m, at + j)) : 0u;
    } else if (m.type == CONV_F16) {
      raw[u][0] = *(const Words4 *)((const cs_half *)m.data + at);
    } else {
      raw[u][0] = ((const Words4 *)((const float *)m.data + at))[0];
      raw[u][1] = ((const Words4 *)((const float *)m.data + at))[1];
    }
  }
}

template <int BATCH>
CS_DEVICE void conv_add_residual(const ConvArgs &a, int columns, const Words4 (&raw)[BATCH][2], float (&v)[BATCH][8]) {
  if (!a.residual.data) return;
  const bool halves = columns == 8 && a.residual.wide && a.residual.type == CONV_F16;
#pragma unroll
  for (int u = 0; u < BATCH; ++u)
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float2 pair = cs_unpack_half2(raw[u][0].w[j / 2]);
      v[u][j] = __fadd_rn(v[u][j], halves ? (j & 1 ? pair.y : pair.x) : __uint_as_float(raw[u][j / 4].w[j % 4]));
    }
}

CS_DEVICE float conv_quantise(float v, float quant) {
  const float q = rintf(__fdiv_rn(v, quant));
  return q < -127.0f ? -127.0f : q > 127.0f ? 127.0f : q;
}

CS_DEVICE void conv_store_8(const ConvMatrix &m, cs_i64 at, int columns, float (&v)[8]) {
  if (m.type == CONV_I8) {
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = conv_quantise(v[j], m.quant);
  }
  if (columns < 8 || !m.wide) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if (j >= columns) break;
      if (m.type == CONV_F16) ((cs_half *)m.data)[at + j] = cs_float_to_half(v[j]);
      else if (m.type == CONV_F32) ((float *)m.data)[at + j] = v[j];
      else ((signed char *)m.data)[at + j] = (signed char)(int)v[j];
    }
  } else if (m.type == CONV_F16) {
    Words4 w;
#pragma unroll
    for (int j = 0; j < 4; ++j) w.w[j] = cs_pack_half2(v[2 * j], v[2 * j + 1]);
    *(Words4 *)((cs_half *)m.data + at) = w;
  } else if (m.type == CONV_F32) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      Words4 w;
#pragma unroll
      for (int j = 0; j < 4; ++j) w.w[j] = __float_as_uint(v[4 * h + j]);
      ((Words4 *)((float *)m.data + at))[h] = w;
    }
  } else {
    Words2 w = {{0u, 0u}};
#pragma unroll
    for (int j = 0; j < 8; ++j) w.w[j / 4] |= (unsigned)((int)v[j] & 255) << (8 * (j % 4));
    *(Words2 *)((signed char *)m.data + at) = w;
  }
}

// 8 values of an array by output channel; past the last channel the first of them.
CS_DEVICE void conv_channels(const ConvArgs &a, const float *from, int column, int columns, float (&v)[8]) {
  from += column;
  if (columns == 8 && a.wide_channels) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const Words4 w = ((const Words4 *)from)[h];
#pragma unroll
      for (int j = 0; j < 4; ++j) v[4 * h + j] = __uint_as_float(w.w[j]);
    }
  } else {
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = from[j < columns ? j : 0];
  }
}

// A batch of sums to the outputs; rows of -1 are left out. Products and sums are rounded one by one (no contraction),
// so that an int8 result can be checked bit by bit.
template <int BATCH, typename Sum>
CS_DEVICE void conv_finish(const ConvArgs &a, const int (&rows)[BATCH], int column, const Sum (&sum)[BATCH][8],
                           const Words4 (&residual)[BATCH][2]) {
  const int columns = min(a.cout - column, 8);
  if (columns <= 0) return;
  float v[BATCH][8], w[8];
#pragma unroll
  for (int u = 0; u < BATCH; ++u)
#pragma unroll
    for (int j = 0; j < 8; ++j) v[u][j] = (float)sum[u][j];
  if (a.dequant) {
    conv_channels(a, a.dequant, column, columns, w);
#pragma unroll
    for (int u = 0; u < BATCH; ++u)
#pragma unroll
      for (int j = 0; j < 8; ++j) v[u][j] = __fmul_rn(v[u][j], w[j]);
  }
  if (a.bias) {
    conv_channels(a, a.bias, column, columns, w);
#pragma unroll
    for (int u = 0; u < BATCH; ++u)
#pragma unroll
      for (int j = 0; j < 8; ++j) v[u][j] = __fadd_rn(v[u][j], w[j]);
  }
  conv_add_residual(a, columns, residual, v);
  if (a.relu) {
#pragma unroll
    for (int u = 0; u < BATCH; ++u)
#pragma unroll
      for (int j = 0; j < 8; ++j) v[u][j] = v[u][j] < 0.0f ? 0.0f : v[u][j];
  }
  // Rolled: one copy of the stores in the code (and no indexing of parameters, which would move them to local memory).
#pragma unroll 1
  for (int i = 0; i < 3; ++i) {
    const ConvMatrix out = i == 0 ? a.out[0] : i == 1 ? a.out[1] : a.out[2];
    if (!out.data) continue;
    float scale[8], shift[8];
    if (i > 0) {
      conv_channels(a, i == 1 ? a.scale[0] : a.scale[1], column, columns, scale);
      conv_channels(a, i == 1 ? a.shift[0] : a.shift[1], column, columns, shift);
    }
#pragma unroll
    for (int u = 0; u < BATCH; ++u) {
      if (rows[u] < 0) continue;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        w[j] = v[u][j];
        if (i > 0) {
          const float z = __fadd_rn(__fmul_rn(w[j], scale[j]), shift[j]);
          w[j] = z < 0.0f ? 0.0f : z;
        }
      }
      conv_store_8(out, rows[u] * out.stride + column, columns, w);
    }
  }
}

// ---- from a warp's sums to rows ----
// A warp stages rows of COLUMNS sums in its own piece of shared memory and leaves them as 8 columns a lane: whole
// sectors of every output, and columns known although wmma hides its layout. Rows lie STRIDE sums apart. wmma pads
// them; mma packs them, with the 16-byte pieces of a row in an order in which neither the pairs of an mma fragment on
// the way in (half a warp: 4 rows x 2 pieces) nor the pieces on the way out (8 lanes: every other piece of 256 bytes)
// meet a bank conflict.
template <int COLUMNS, bool PACKED> struct ConvStage {
  static constexpr int STRIDE = PACKED ? COLUMNS : COLUMNS + 8;
  CS_DEVICE int at(int row, int column) {
    const int piece = column >> 2;
    const int place = PACKED ? piece ^ ((row & 3) * 2 + (row & 1)) ^ (piece >> 3) : piece;
    return row * STRIDE + place * 4 + (column & 3);
  }
};

// `staged` rows of a warp's sums from `stage` on: those of the tile's rows from row0 on.
template <int ROWS, int TILE_COLUMNS, int COLUMNS, bool PACKED, int STAGED, typename Sum>
CS_DEVICE void conv_leave(const ConvArgs &a, const ConvTile &t, const int *rows, const Sum *stage, int row0,
                          int column0) {
  constexpr int lanes = COLUMNS / 8, pass = 32 / lanes, BATCH = STAGED / pass < 4 ? STAGED / pass : 4;
  const int lane = cs_lane(), c = lane % lanes * 8, column = t.column_tile * TILE_COLUMNS + column0 + c;
#pragma unroll 1
  for (int first = lane / lanes; first < STAGED; first += BATCH * pass) {
    int row[BATCH];
    Sum v[BATCH][8];
    Words4 residual[BATCH][2];
#pragma unroll
    for (int u = 0; u < BATCH; ++u) row[u] = rows[row0 + first + u * pass];
    if (t.slot < 0) conv_fetch_residual(a, row, column, residual);
#pragma unroll
    for (int u = 0; u < BATCH; ++u)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const Words4 w = shared_load_16(stage + ConvStage<COLUMNS, PACKED>::at(first + u * pass, c + 4 * h));
#pragma unroll
        for (int j = 0; j < 4; ++j) conv_bits(w.w[j], v[u][4 * h + j]);
      }
    if (t.slot < 0) {
      conv_finish(a, row, column, v, residual);
      continue;
    }
#pragma unroll
    for (int u = 0; u < BATCH; ++u) {
      if (row[u] < 0) continue;
      const cs_i64 at = ((cs_i64)t.slot * ROWS + row0 + first + u * pass) * TILE_COLUMNS + column0 + c;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        Words4 w;
#pragma unroll
        for (int j = 0; j < 4; ++j) w.w[j] = conv_bits_of(v[u][4 * h + j]);
        ((Words4 *)((Sum *)a.partial + at))[h] = w;
      }
    }
  }
}

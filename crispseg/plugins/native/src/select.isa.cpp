// The front end's arithmetic: interpolation, argmax, softmax and entropy of VW pixels at a time.
//
// A tile is a piece of the vertically interpolated logits, [C][2*VW] columns from a source column on: it lives in L1
// and serves several output vectors. A vector takes lane i from two neighbouring tile columns. Full-size logits exist
// only as the C x VW values being worked on.
#include "select_evaluate.h"

namespace crispseg {
namespace {

// One source row, or two being mixed, of every class.
struct Rows {
  const float *above, *below;  // class 0
  int64_t plane;               // h * w
  float weight;
  int w;
};

Rows rows_of(const SelectJob &job, int y) {
  Rows rows;
  const int y0 = job.y0[y], y1 = y0 + 1 < job.h ? y0 + 1 : job.h - 1;
  rows.above = job.logits + static_cast<int64_t>(y0) * job.w;
  rows.below = job.logits + static_cast<int64_t>(y1) * job.w;
  rows.plane = static_cast<int64_t>(job.h) * job.w;
  rows.weight = job.fy[y];
  rows.w = job.w;
  return rows;
}

// tile[c][j] = mixed logit of class c at source column clamp(first + j). No read outside the two rows.
inline void fill_tile(const Rows &rows, int C, int first, float *tile) {
  const vf weight = splat(rows.weight);
  if (first >= 0 && first + kTile <= rows.w) {
    const float *a = rows.above + first, *b = rows.below + first;
    for (int c = 0; c < C; ++c, a += rows.plane, b += rows.plane, tile += kTile)
      for (int j = 0; j < kTile; j += VW) {
        const vf top = load(a + j);
        store(tile + j, top + weight * (load(b + j) - top));
      }
    return;
  }
  const float *a = rows.above, *b = rows.below;
  for (int c = 0; c < C; ++c, a += rows.plane, b += rows.plane, tile += kTile) {
    alignas(64) float pair[2][kTile];
    for (int j = 0; j < kTile; ++j) {
      int x = first + j;
      x = x < 0 ? 0 : x < rows.w ? x : rows.w - 1;
      pair[0][j] = a[x];
      pair[1][j] = b[x];
    }
    for (int j = 0; j < kTile; j += VW) {
      const vf top = load(pair[0] + j);
      store(tile + j, top + weight * (load(pair[1] + j) - top));
    }
  }
}

// The class every pixel between these columns of both rows certainly has, or -1.
inline int certain_class(const SelectJob &job, int y, int x_first, int x_last) {
  const int y0 = job.y0[y], y1 = y0 + 1 < job.h ? y0 + 1 : job.h - 1;
  const int lo = x_first < 0 ? 0 : x_first, hi = x_last < job.w ? x_last : job.w - 1;
  const int64_t a = static_cast<int64_t>(y0) * job.w + lo, b = static_cast<int64_t>(y1) * job.w + lo;
  const int length = hi - lo + 1;
  if (job.run[a] < length || job.run[b] < length || job.top[a] != job.top[b]) return -1;
  return job.top[a];
}

// out[i * ratio + p] = value[p][i] for the first n lanes.
inline void interleave(const vi *value, int ratio, int n, uint8_t *out) {
  if (ratio == 4) {
    const vi word = value[0] | (value[1] << 8) | (value[2] << 16) | (value[3] << 24);
    if (n == VW) {
      *reinterpret_cast<vi_mem *>(out) = word;
    } else {
      memcpy(out, &word, static_cast<size_t>(n) * 4);
    }
    return;
  }
  for (int p = 0; p < ratio; ++p) {
    uint8_t bytes[VW];
    store_bytes(bytes, value[p]);
    for (int i = 0; i < n; ++i) out[i * ratio + p] = bytes[i];
  }
}

void phase_row(const SelectJob &job, int y, const Work &work) {
  const int s = job.ratio, w = job.w;
  const int64_t row = static_cast<int64_t>(y) * job.W;
  const Rows rows = rows_of(job, y);
  FromPhases source;
  source.tile = work.tile;
  // Pixel s*i + p lies at source column i + d; its left tap is tile column 0 or 1 (the tile starts at i - 1).
  int offset[kSelectMaxRatio + kGroup] = {};
  float weight[kSelectMaxRatio + kGroup] = {};
  for (int p = 0; p < s; ++p) {
    const double d = (2 * p + 1 - s) / (2.0 * s);
    offset[p] = d < 0 ? 0 : 1;
    weight[p] = static_cast<float>(d < 0 ? d + 1 : d);
  }
  for (int i = 0; i < w; i += VW) {
    const int n = w - i < VW ? w - i : VW;
    const int64_t out = row + static_cast<int64_t>(i) * s;
    const size_t bytes = static_cast<size_t>(n) * s;
    if (!job.confidence) {
      const int known = certain_class(job, y, i - 1, i + n);
      if (known >= 0) {
        memset(job.labels + out, known, bytes);
        memset(job.mask + out, 0, bytes);
        continue;
      }
    }
    fill_tile(rows, job.C, i - 1, work.tile);
    Result result[kSelectMaxRatio + kGroup];
    for (int p = 0; p < s; p += kGroup) {
      for (int q = 0; q < kGroup; ++q) {
        source.offset[q] = offset[p + q];
        source.weight[q] = splat(weight[p + q]);
      }
      if (s - p >= kGroup) {
        evaluate<kGroup>(source, job, work, result + p);
      } else {
        for (int q = 0; p + q < s; ++q) {
          FromPhases one = source;
          one.offset[0] = source.offset[q];
          one.weight[0] = source.weight[q];
          evaluate<1>(one, job, work, result + p + q);
        }
      }
    }
    vi part[kSelectMaxRatio];
    for (int p = 0; p < s; ++p) part[p] = result[p].label;
    interleave(part, s, n, job.labels + out);
    vi active = {};
    for (int p = 0; p < s; ++p) {
      part[p] = result[p].active & 1;
      active |= part[p];
    }
    interleave(part, s, n, job.mask + out);
    if (any(-active))
      for (int p = 0; p < s; ++p)
        for (int j = 0; j < n; ++j) job.entropy[out + j * s + p] = result[p].entropy[j];
    if (job.confidence) {
      for (int p = 0; p < s; ++p) part[p] = result[p].confidence;
      interleave(part, s, n, job.confidence + out);
    }
  }
}

inline void put(const SelectJob &job, const Result &r, int64_t at, int n) {
  uint8_t bytes[3][VW];
  store_bytes(bytes[0], r.label);
  store_bytes(bytes[1], r.active & 1);
  store_bytes(bytes[2], r.confidence);
  memcpy(job.labels + at, bytes[0], static_cast<size_t>(n));
  memcpy(job.mask + at, bytes[1], static_cast<size_t>(n));
  if (job.confidence) memcpy(job.confidence + at, bytes[2], static_cast<size_t>(n));
  if (any(r.active))
    for (int j = 0; j < n; ++j) job.entropy[at + j] = r.entropy[j];
}

void table_row(const SelectJob &job, int y, const Work &work) {
  const int64_t row = static_cast<int64_t>(y) * job.W;
  const Rows rows = rows_of(job, y);
  FromTables source;
  source.tile = work.tile;
  for (int x = 0; x < job.W;) {
    const int first = job.x0[x];
    // As many vectors as one tile can serve; at least one, and when not even that fits, pixel by pixel.
    int vectors = 0;
    while (vectors < kGroup && x + vectors * VW < job.W &&
           job.x0[x + vectors * VW + VW - 1] - first + 1 < kTile &&
           job.x0[x + vectors * VW + VW - 1] - job.x0[x + vectors * VW] < VW)
      ++vectors;
    const int span = vectors ? vectors * VW : VW;
    const int n = job.W - x < span ? job.W - x : span;
    if (!job.confidence) {
      const int known = certain_class(job, y, first, job.x0[x + n - 1] + 1);
      if (known >= 0) {
        memset(job.labels + row + x, known, static_cast<size_t>(n));
        memset(job.mask + row + x, 0, static_cast<size_t>(n));
        x += n;
        continue;
      }
    }
    Result result[kGroup];
    if (vectors == 0) {  // shrinking: taps too far apart for a tile
      const float *a = rows.above, *b = rows.below;
      for (int c = 0; c < job.C; ++c, a += rows.plane, b += rows.plane)
        for (int j = 0; j < VW; ++j) {
          const int l = job.x0[x + j], r = l + 1 < job.w ? l + 1 : job.w - 1;
          const float left = a[l] + rows.weight * (b[l] - a[l]), right = a[r] + rows.weight * (b[r] - a[r]);
          work.tile[static_cast<int64_t>(c) * kTile + j] = left + job.fx[x + j] * (right - left);
        }
      evaluate<1>(FromMemory{work.tile, kTile}, job, work, result);
      vectors = 1;
    } else {
      fill_tile(rows, job.C, first, work.tile);
      for (int p = 0; p < kGroup; ++p) {
        const int at = x + (p < vectors ? p : 0) * VW;
        const vi index = load(job.x0 + at);
        int offset = job.x0[at] - first;
        if (offset > VW - 1) offset = VW - 1;  // both loads stay inside the tile; indices stay below VW
        source.offset[p] = offset;
        source.index[p] = index - splat(static_cast<int32_t>(first + offset));
        source.weight[p] = load(job.fx + at);
      }
      if (vectors == kGroup) {
        evaluate<kGroup>(source, job, work, result);
      } else {
        for (int p = 0; p < vectors; ++p) {
          FromTables one = source;
          one.offset[0] = source.offset[p];
          one.index[0] = source.index[p];
          one.weight[0] = source.weight[p];
          evaluate<1>(one, job, work, result + p);
        }
      }
    }
    for (int p = 0; p < vectors; ++p) {
      const int at = x + p * VW;
      put(job, result[p], row + at, job.W - at < VW ? job.W - at : VW);
    }
    x += vectors * VW;
  }
}

void rows(const SelectJob &job, int y_begin, int y_end, float *memory) {
  const Work work = split(memory, job.C);
  for (int y = y_begin; y < y_end; ++y) {
    if (job.ratio > 0) {
      phase_row(job, y, work);
    } else {
      table_row(job, y, work);
    }
  }
}

void plain(const SelectJob &job, int y_begin, int y_end, float *memory) {
  const Work work = split(memory, job.C);
  const int64_t plane = static_cast<int64_t>(job.h) * job.w;
  for (int y = y_begin; y < y_end; ++y) {
    const int64_t row = static_cast<int64_t>(y) * job.w;
    for (int x = 0; x < job.w; x += VW) {
      const int n = job.w - x < VW ? job.w - x : VW;
      Result result;
      if (n == VW) {
        evaluate<1>(FromMemory{job.logits + row + x, plane}, job, work, &result);
      } else {
        for (int c = 0; c < job.C; ++c)
          store(work.tile + static_cast<int64_t>(c) * kTile, load_part(job.logits + c * plane + row + x, n));
        evaluate<1>(FromMemory{work.tile, kTile}, job, work, &result);
      }
      put(job, result, row + x, n);
    }
  }
}

void certain(const SelectJob &job, float lead, int y_begin, int y_end, int16_t *top, uint16_t *run, float *) {
  const int64_t plane = static_cast<int64_t>(job.h) * job.w;
  const vf margin = splat(lead);
  for (int y = y_begin; y < y_end; ++y) {
    const int64_t row = static_cast<int64_t>(y) * job.w;
    for (int x = 0; x < job.w; x += VW) {
      const int n = job.w - x < VW ? job.w - x : VW;
      vf first = splat(-__builtin_inff()), second = first;
      vi label = {};
      const float *at = job.logits + row + x;
      for (int c = 0; c < job.C; ++c, at += plane) {
        const vf v = n == VW ? load(at) : load_part(at, n);
        const vi above = v > first;
        second = above ? first : vmax(v, second);
        first = vmax(v, first);
        label = above ? splat(static_cast<int32_t>(c)) : label;
      }
      label = first - second >= margin ? label : splat(static_cast<int32_t>(-1));
      for (int j = 0; j < n; ++j) top[row + x + j] = static_cast<int16_t>(label[j]);
    }
    int length = 0, last = -1;
    for (int x = job.w - 1; x >= 0; --x) {
      const int now = top[row + x];
      length = now < 0 ? 0 : now == last ? (length < 65535 ? length + 1 : length) : 1;
      last = now;
      run[row + x] = static_cast<uint16_t>(length);
    }
  }
}

int64_t count(const uint8_t *mask, int64_t n) {
  int64_t total = 0;
  for (int64_t i = 0; i < n;) {
    const int64_t end = i + 65536 < n ? i + 65536 : n;
    uint32_t sum = 0;
    for (; i < end; ++i) sum += mask[i];
    total += sum;
  }
  return total;
}

}  // namespace

const SelectKernels CS_NAME(select_kernels) = {work_floats, rows, plain, certain, count};

}  // namespace crispseg

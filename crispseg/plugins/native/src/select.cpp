// cs_select_pixels: sampling tables, scratch, compaction of the active pixels in raster order.
#include <cmath>
#include <cstring>
#include <limits>

#include "internal.h"
#include "sampling.h"
#include "select_kernels.h"

namespace crispseg {
namespace {

constexpr int kRowsPerBlock = 4;

// The lead of the best logit from which on the entropy cannot exceed the threshold, NaN when there is none.
// Among C classes the entropy under "every other logit is at least m below" is largest when all are exactly m below.
float safe_margin(int C, float threshold) {
  const double none = std::numeric_limits<double>::quiet_NaN();
  const double target = static_cast<double>(threshold) - 1e-4;  // far above the rounding of the kernel
  if (!(target > 1e-4)) return static_cast<float>(none);
  const auto bound = [C](double m) {
    const double q = (C - 1) * std::exp(-m);
    return std::log1p(q) + q * m / (1 + q);
  };
  double low = 0, high = 40;
  if (bound(high) > target) return static_cast<float>(none);
  if (bound(low) <= target) return 0.0f;
  for (int i = 0; i < 60; ++i) {
    const double middle = 0.5 * (low + high);
    (bound(middle) > target ? low : high) = middle;
  }
  return static_cast<float>(high + 1e-3);
}

inline uint32_t order_key(float value) {
  value += 0.0f;  // -0 and 0 are equal
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

struct Kept {  // pixels with key > least, and the first `ties` ones with key == least
  uint32_t least;
  int64_t ties;
};

// The `capacity` largest entropies among the marked pixels: two counting passes over 16 bits each.
Kept most_uncertain(const uint8_t *mask, const float *entropy, int64_t pixels, int64_t capacity, int64_t *bins) {
  Kept kept{0xffffffffu, 0};
  int64_t wanted = capacity;
  if (capacity == 0) return kept;
  uint32_t high = 0;
  for (int pass = 0; pass < 2; ++pass) {
    std::memset(bins, 0, 65536 * sizeof(int64_t));
    for (int64_t i = 0; i < pixels; ++i) {
      if (!mask[i]) continue;
      const uint32_t key = order_key(entropy[i]);
      if (pass == 0) {
        ++bins[key >> 16];
      } else if (key >> 16 == high) {
        ++bins[key & 0xffffu];
      }
    }
    int bin = 65535;
    while (bin > 0 && bins[bin] < wanted) wanted -= bins[bin--];
    if (pass == 0) {
      high = static_cast<uint32_t>(bin);
    } else {
      kept.least = high << 16 | static_cast<uint32_t>(bin);
    }
  }
  kept.ties = wanted;
  return kept;
}

inline int32_t write_row(const uint8_t *mask, int W, int y, int32_t *coords) {
  int32_t n = 0;
  int x = 0;
  const auto put = [&](int at) {
    coords[2 * n] = y;
    coords[2 * n + 1] = at;
    ++n;
  };
  for (; x + 8 <= W; x += 8) {
    uint64_t eight;
    std::memcpy(&eight, mask + x, 8);
    if (!eight) continue;
    for (int j = 0; j < 8; ++j)
      if (mask[x + j]) put(x + j);
  }
  for (; x < W; ++x)
    if (mask[x]) put(x);
  return n;
}

}  // namespace
}  // namespace crispseg

extern "C" int cs_select_pixels(cs_context *ctx, const float *logits, int C, int h, int w, int H, int W, cs_upsample up,
                                float threshold, int64_t capacity, uint8_t *labels, uint8_t *confidence,
                                int32_t *coords, int32_t *count, int32_t *found) {
  using namespace crispseg;
  if (!ctx || !logits || !labels || !count || !found || (!coords && capacity > 0))
    return fail(CS_BAD_ARGUMENT, "cs_select_pixels: a required pointer is null");
  if (C < 1 || C > 256) return fail(CS_BAD_ARGUMENT, "cs_select_pixels: C = %d, expected 1..256", C);
  if (h < 1 || w < 1 || H < 1 || W < 1 || static_cast<int64_t>(H) * W > INT32_MAX ||
      static_cast<int64_t>(h) * w > INT32_MAX)
    return fail(CS_BAD_ARGUMENT, "cs_select_pixels: logits %d x %d, frame %d x %d: sizes out of range", h, w, H, W);
  if (up != CS_NEAREST && up != CS_BILINEAR && up != CS_BILINEAR_CORNERS)
    return fail(CS_BAD_ARGUMENT, "cs_select_pixels: unknown upsampling rule %d", static_cast<int>(up));
  if (capacity < 0) return fail(CS_BAD_ARGUMENT, "cs_select_pixels: capacity is negative");
  if (threshold != threshold) return fail(CS_BAD_ARGUMENT, "cs_select_pixels: threshold is NaN");

  const SelectKernels &kernels = CS_PICK(ctx->isa, select_kernels);
  const int64_t pixels = static_cast<int64_t>(H) * W, low = static_cast<int64_t>(h) * w;
  const bool direct = up == CS_NEAREST || (h == H && w == W);  // no interpolation: evaluate the low-resolution pixels
  const int padded = static_cast<int>(round_up(W, 64));

  // A: tables. Four of int32/float, offsets of the rows' first active pixel, histogram of the over-capacity case.
  const size_t table_bytes = static_cast<size_t>(H + padded) * 8;
  const size_t bytes = 65536 * sizeof(int64_t) + static_cast<size_t>(H + 1) * sizeof(int32_t) + table_bytes;
  uint8_t *tables = ctx->scratch<uint8_t>(kSlotSelectA, bytes);
  // B: full-size mask and entropy.  C: results or certainty at low resolution.  D: one piece per worker.
  uint8_t *full = ctx->scratch<uint8_t>(kSlotSelectB, static_cast<size_t>(round_up(pixels, 64)) * 5);
  uint8_t *small = ctx->scratch<uint8_t>(kSlotSelectC, static_cast<size_t>(round_up(low, 64)) * 8);
  const int64_t piece = round_up(kernels.work_floats(C), 64);
  float *work = ctx->scratch<float>(kSlotSelectD, static_cast<size_t>(piece) * ctx->threads);
  if (!tables || !full || !small || !work) return CS_OUT_OF_MEMORY;

  int64_t *bins = reinterpret_cast<int64_t *>(tables);
  int32_t *y0 = reinterpret_cast<int32_t *>(bins + 65536);
  float *fy = reinterpret_cast<float *>(y0 + H);
  int32_t *x0 = reinterpret_cast<int32_t *>(fy + H);
  float *fx = reinterpret_cast<float *>(x0 + padded);
  int32_t *start = reinterpret_cast<int32_t *>(fx + padded);
  float *entropy = reinterpret_cast<float *>(full);
  uint8_t *mask = full + static_cast<size_t>(round_up(pixels, 64)) * 4;

  SelectJob job{};
  job.logits = logits;
  job.C = C;
  job.h = h;
  job.w = w;
  job.H = H;
  job.W = W;
  job.threshold = threshold;
  job.margin = safe_margin(C, threshold);
  job.y0 = y0;
  job.fy = fy;
  job.x0 = x0;
  job.fx = fx;
  const int64_t blocks = ceil_div(H, kRowsPerBlock);
  const auto rows_of = [&](int64_t block, int limit, int *begin, int *end) {
    *begin = static_cast<int>(block) * kRowsPerBlock;
    *end = *begin + kRowsPerBlock < limit ? *begin + kRowsPerBlock : limit;
  };

  float *low_entropy = reinterpret_cast<float *>(small);
  if (direct) {
    uint8_t *low_mask = small + static_cast<size_t>(round_up(low, 64)) * 4;
    uint8_t *low_labels = low_mask + round_up(low, 64), *low_confidence = low_labels + round_up(low, 64);
    job.labels = low_labels;
    job.confidence = confidence ? low_confidence : nullptr;
    job.mask = low_mask;
    job.entropy = low_entropy;
    parallel_for(ctx, ceil_div(h, kRowsPerBlock), [&](int64_t block, int worker) {
      int begin, end;
      rows_of(block, h, &begin, &end);
      kernels.plain(job, begin, end, work + worker * piece);
    });
    nearest_table(w, W, x0);
    nearest_table(h, H, y0);
    parallel_for(ctx, blocks, [&](int64_t block, int) {
      int begin, end;
      rows_of(block, H, &begin, &end);
      for (int y = begin; y < end; ++y) {
        const int64_t to = static_cast<int64_t>(y) * W, from = static_cast<int64_t>(y0[y]) * w;
        if (y > begin && y0[y] == y0[y - 1]) {
          std::memcpy(labels + to, labels + to - W, static_cast<size_t>(W));
          std::memcpy(mask + to, mask + to - W, static_cast<size_t>(W));
          if (confidence) std::memcpy(confidence + to, confidence + to - W, static_cast<size_t>(W));
          start[y] = start[y - 1];
          continue;
        }
        for (int x = 0; x < W; ++x) {
          labels[to + x] = low_labels[from + x0[x]];
          mask[to + x] = low_mask[from + x0[x]];
        }
        if (confidence)
          for (int x = 0; x < W; ++x) confidence[to + x] = low_confidence[from + x0[x]];
        start[y] = static_cast<int32_t>(kernels.count(mask + to, W));
      }
    });
  } else {
    const bool phases = up == CS_BILINEAR && W % w == 0 && W / w <= kSelectMaxRatio;
    job.ratio = phases ? W / w : 0;
    linear_table(h, H, up, H, y0, fy);
    linear_table(w, W, up, padded, x0, fx);
    int16_t *top = reinterpret_cast<int16_t *>(small);
    uint16_t *run = reinterpret_cast<uint16_t *>(top + round_up(low, 64));
    job.labels = labels;
    job.confidence = confidence;
    job.mask = mask;
    job.entropy = entropy;
    job.top = top;
    job.run = run;
    if (!confidence) {
      // Interpolation is linear, so between corners that all agree on the best class by this lead, it leads as well.
      const float lead = job.margin < 0.01f ? 0.01f : job.margin;
      parallel_for(ctx, ceil_div(h, kRowsPerBlock), [&](int64_t block, int worker) {
        int begin, end;
        rows_of(block, h, &begin, &end);
        kernels.certain(job, lead, begin, end, top, run, work + worker * piece);
      });
    }
    parallel_for(ctx, blocks, [&](int64_t block, int worker) {
      int begin, end;
      rows_of(block, H, &begin, &end);
      kernels.rows(job, begin, end, work + worker * piece);
      for (int y = begin; y < end; ++y)
        start[y] = static_cast<int32_t>(kernels.count(mask + static_cast<int64_t>(y) * W, W));
    });
  }

  int64_t total = 0;
  for (int y = 0; y < H; ++y) total += start[y];
  *found = static_cast<int32_t>(total);
  if (total > capacity) {
    if (direct)
      for (int y = 0; y < H; ++y)
        for (int x = 0; x < W; ++x)
          entropy[static_cast<int64_t>(y) * W + x] = low_entropy[static_cast<int64_t>(y0[y]) * w + x0[x]];
    const Kept kept = most_uncertain(mask, entropy, pixels, capacity, bins);
    int64_t ties = kept.ties;
    for (int y = 0; y < H; ++y) {
      int32_t n = 0;
      for (int64_t i = static_cast<int64_t>(y) * W, end = i + W; i < end; ++i) {
        if (!mask[i]) continue;
        const uint32_t key = order_key(entropy[i]);
        const bool keep = capacity > 0 && (key > kept.least || (key == kept.least && ties-- > 0));
        mask[i] = keep;
        n += keep;
      }
      start[y] = n;
    }
    total = capacity;
  }
  int32_t next = 0;
  for (int y = 0; y < H; ++y) {
    const int32_t n = start[y];
    start[y] = next;
    next += n;
  }
  *count = next;
  if (next == 0) return CS_OK;
  parallel_for(ctx, blocks, [&](int64_t block, int) {
    int begin, end;
    rows_of(block, H, &begin, &end);
    for (int y = begin; y < end; ++y)
      write_row(mask + static_cast<int64_t>(y) * W, W, y, coords + 2 * static_cast<int64_t>(start[y]));
  });
  return CS_OK;
}

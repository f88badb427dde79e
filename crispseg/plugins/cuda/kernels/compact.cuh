// Selection, second part: the mask -> coordinates in raster order, cut at the capacity. Two kernels over chunks of 256
// words (8192 pixels at most): the first counts, in the second every block adds up the counts before its own, so that
// no block waits for another. Reads 0.25 MB of mask twice (1024 x 2048) and, over capacity, the bins of the active
// pixels once.
#pragma once
#include "base.cuh"
#include "front_params.h"

// Where the histogram is cut: pixels above bin `least` stay, and `allowed` of those in it. Every block finds it by
// itself (8 KB that all blocks read). With found <= capacity nothing is cut.
struct CsFoundCut {
  int found, over, least, allowed;
};
CS_DEVICE CsFoundCut cs_find_cut(const cs_u32 *histogram, int capacity, int *scratch, int *shared) {
  constexpr int per_thread = CS_SELECT_BINS / CS_SELECT_CHUNK;
  const int top = CS_SELECT_BINS - 1 - (int)threadIdx.x * per_thread;  // thread 0 has the highest bins
  int bins[per_thread], sum = 0;
#pragma unroll
  for (int i = 0; i < per_thread; ++i) {
    bins[i] = (int)histogram[top - i];
    sum += bins[i];
  }
  CsFoundCut cut;
  int above = cs_block_scan(sum, CS_SELECT_CHUNK, scratch, &cut.found);
  cut.over = cut.found > capacity;
  if (threadIdx.x == 0) {
    shared[0] = CS_SELECT_BINS;  // capacity 0: nothing stays
    shared[1] = 0;
  }
  cs_sync();
  if (cut.over) {
#pragma unroll
    for (int i = 0; i < per_thread; ++i) {
      if (above < capacity && above + bins[i] >= capacity) {  // true in one bin of one thread
        shared[0] = top - i;
        shared[1] = capacity - above;
      }
      above += bins[i];
    }
  }
  cs_sync();
  cut.least = shared[0];
  cut.allowed = shared[1];
  return cut;
}

CS_GLOBAL void CS_LAUNCH_BOUNDS(256) csk_select_count(CsCompact a) {
  CS_SHARED(int, scratch, [33]);
  CS_SHARED(int, shared, [2]);
  const CsFoundCut cut = cs_find_cut(a.histogram, a.capacity, scratch, shared);
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    a.cut->over = cut.over;
    a.cut->allowed = cut.allowed;
    *a.found = cut.found;
    *a.count = min(cut.found, a.capacity);
  }
  const int at = (int)blockIdx.x * CS_SELECT_CHUNK + (int)threadIdx.x;
  cs_u32 stay = 0, tied = 0;
  if (at < a.height * a.words_per_row) {
    const cs_u32 word = a.words[at];
    stay = word;
    if (cut.over) {
      const int y = at / a.words_per_row, x = (at - y * a.words_per_row) * 32;
      const cs_u16 *bins = a.bins + (cs_i64)y * a.width + x;
      stay = 0;
      for (cs_u32 left = word; left; left &= left - 1) {
        const int bit = __ffs((int)left) - 1, bin = (int)bins[bit];
        if (bin > cut.least) stay |= 1u << bit;
        if (bin == cut.least) tied |= 1u << bit;
      }
      a.words[at] = stay;
      a.ties[at] = tied;
    }
  }
  // Both counts in one scan: a chunk has at most 8192 pixels.
  int total;
  cs_block_scan(__popc(stay) | __popc(tied) << 16, CS_SELECT_CHUNK, scratch, &total);
  if (threadIdx.x == 0) {
    a.chunks[2 * blockIdx.x] = total & 0xffff;
    a.chunks[2 * blockIdx.x + 1] = total >> 16;
  }
}

CS_GLOBAL void CS_LAUNCH_BOUNDS(256) csk_select_write(CsCompact a) {
  CS_SHARED(int, scratch, [33]);
  const bool over = a.cut->over != 0;
  const int allowed = a.cut->allowed;
  int stay = 0, tied = 0;
  for (int i = (int)threadIdx.x; i < (int)blockIdx.x; i += CS_SELECT_CHUNK) {
    stay += a.chunks[2 * i];
    tied += a.chunks[2 * i + 1];
  }
  int stay_before, tied_before, total;
  cs_block_scan(stay, CS_SELECT_CHUNK, scratch, &stay_before);
  cs_block_scan(tied, CS_SELECT_CHUNK, scratch, &tied_before);
  const int at = (int)blockIdx.x * CS_SELECT_CHUNK + (int)threadIdx.x;
  const bool mine = at < a.height * a.words_per_row;
  const cs_u32 word = mine ? a.words[at] : 0;
  const cs_u32 ties = mine && over ? a.ties[at] : 0;
  const int before = cs_block_scan(__popc(word) | __popc(ties) << 16, CS_SELECT_CHUNK, scratch, &total);
  tied_before += before >> 16;
  int row = stay_before + (before & 0xffff) + min(tied_before, allowed);
  const int y = at / a.words_per_row, x = (at - y * a.words_per_row) * 32;
  for (cs_u32 left = word | ties; left; left &= left - 1) {
    const int bit = __ffs((int)left) - 1;
    if (ties >> bit & 1u && tied_before++ >= allowed) continue;
    ((int2 *)a.coords)[row++] = make_int2(y, x + bit);
  }
}

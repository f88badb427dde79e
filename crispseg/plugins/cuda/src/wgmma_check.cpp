// Are the wgmma kernels right on this device? They are used where a small convolution in whole numbers, exact in every
// order of adding, gives the same bytes as the mma.sync kernels. $CRISPSEG_WGMMA=0 leaves them unused.
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "launch.h"

namespace crispseg {
namespace {

constexpr int rows = 130, taps = 5, cin = 40, cout = 240, ldx = 64;

struct Memory {  // device memory, freed at the end
  const Driver *cu;
  CUdeviceptr at = 0;
  explicit Memory(const Driver *driver) : cu(driver) {}
  ~Memory() {
    if (at) cu->cuMemFree_v2(at);
  }
};

// -3 .. 3, the same ones everywhere.
int small_number(uint32_t &state) {
  state = state * 1664525u + 1013904223u;
  return static_cast<int>(state >> 16) % 7 - 3;
}

// Whether both paths gave the same bytes, in *same. Whatever fails is a status, with csg_last_error set.
int compare(csg_context *ctx, csg_type type, bool *same) {
  const Driver *cu = ctx->cu;
  const size_t size = type == CSG_F16 ? 2 : 1;
  const uint16_t halves[7] = {0xc200, 0xc000, 0xbc00, 0, 0x3c00, 0x4000, 0x4200};
  uint32_t state = 1;
  std::vector<unsigned char> x(rows * ldx * size, 0);
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < cin; ++c) {
      const int v = small_number(state);
      if (type == CSG_F16) std::memcpy(&x[(r * ldx + c) * 2], &halves[v + 3], 2);
      else x[r * ldx + c] = static_cast<unsigned char>(static_cast<signed char>(v));
    }
  std::vector<float> weight(taps * cin * cout), scales(cout, 1.0f);
  for (float &w : weight) w = static_cast<float>(small_number(state));
  std::vector<int32_t> map(rows * taps);
  for (size_t i = 0; i < map.size(); ++i) map[i] = small_number(state) < -1 ? -1 : static_cast<int>(i * 37 % rows);
  std::vector<unsigned char> packed(csg_packed_bytes(type, taps, cin, cout));
  if (csg_pack_weight(type, weight.data(), taps, cin, cout, packed.data(),
                      type == CSG_I8 ? scales.data() : nullptr) != CSG_OK)
    return CSG_INTERNAL;
  const int32_t count = rows;
  const size_t out = sizeof(float) * rows * cout;
  const struct { const void *from; size_t bytes; } parts[] = {
      {x.data(), x.size()},           {packed.data(), packed.size()}, {map.data(), sizeof(int32_t) * map.size()},
      {scales.data(), sizeof(float) * cout}, {&count, sizeof count},  {nullptr, out},
  };
  size_t bytes = 0;
  for (const auto &part : parts) bytes += (part.bytes + 255) / 256 * 256;
  Memory memory(cu);
  CUresult result = cu->cuMemAlloc_v2(&memory.at, bytes);
  if (result != CUDA_SUCCESS) return fail_driver(cu, result, "cuMemAlloc");
  CUdeviceptr places[6], at = memory.at;
  for (int i = 0; i < 6; ++i) {
    places[i] = at;
    if (parts[i].from && (result = cu->cuMemcpyHtoD_v2(at, parts[i].from, parts[i].bytes)) != CUDA_SUCCESS)
      return fail_driver(cu, result, "cuMemcpyHtoD");
    at += (parts[i].bytes + 255) / 256 * 256;
  }
  csg_conv c{};
  c.type = type;
  c.d_x = reinterpret_cast<void *>(places[0]);
  c.ldx = ldx;
  c.d_weight = reinterpret_cast<void *>(places[1]);
  c.d_map = reinterpret_cast<int32_t *>(places[2]);
  if (type == CSG_I8) c.d_dequant = reinterpret_cast<float *>(places[3]);
  c.d_count = reinterpret_cast<int32_t *>(places[4]);
  c.capacity = rows;
  c.K = taps;
  c.cin = cin;
  c.cout = cout;
  c.y_type = CSG_F32;
  c.d_y = reinterpret_cast<void *>(places[5]);
  c.ldy = cout;
  std::vector<unsigned char> results[2] = {std::vector<unsigned char>(out), std::vector<unsigned char>(out)};
  for (int turn = 0; turn < 2; ++turn) {
    c.portable = turn == 0 ? 2 : 0;
    CSG_TRY(fill_bytes(ctx, nullptr, c.d_y, 0xff, out));
    CSG_TRY(csg_sparse_conv(ctx, nullptr, &c));
    result = cu->cuMemcpyDtoH_v2(results[turn].data(), places[5], out);  // waits: what the kernel did wrong shows here
    if (result != CUDA_SUCCESS) return fail_driver(cu, result, turn == 0 ? "mma.sync kernel" : "wgmma kernel");
  }
  *same = results[0] == results[1];
  return CSG_OK;
}

// A kernel that does what is not allowed leaves a CUDA context in which every call fails, for as long as the process
// lives; a launch that is refused does not.
bool context_lives(const Driver *cu) {
  Memory memory(cu);
  const CUresult result = cu->cuMemAlloc_v2(&memory.at, 1);
  return result == CUDA_SUCCESS || result == CUDA_ERROR_OUT_OF_MEMORY;
}

// Status. What cannot be tried (no memory, a launch that is refused) is not the same, and no error.
int same_bytes(csg_context *ctx, csg_type type, bool *same) {
  *same = false;
  if (compare(ctx, type, same) == CSG_OK || context_lives(ctx->cu)) return CSG_OK;
  const std::string why = csg_last_error();
  return fail(
      CSG_DRIVER_ERROR,
      "check of the wgmma convolutions against those of mma.sync: %.400s; the CUDA context is lost, and with it the "
      "GPU for this process: start again with CRISPSEG_WGMMA=0, which goes without wgmma and its check (should "
      "that fail too: --backend native)",
      why.c_str());
}

}  // namespace

int check_wgmma(csg_context *ctx) {
  const char *wanted = std::getenv("CRISPSEG_WGMMA");
  const bool off = wanted && !std::strcmp(wanted, "0");
  const struct { KernelId id; csg_type type; } kernels[] = {
      {KernelId::csk_conv_f16_wgmma_128x128, CSG_F16},
      {KernelId::csk_conv_i8_wgmma_128x128, CSG_I8},
  };
  for (const auto &kernel : kernels) {
    LoadedKernel &loaded = ctx->kernels[static_cast<int>(kernel.id)];
    bool same = false;
    if (loaded.function && !off) CSG_TRY(same_bytes(ctx, kernel.type, &same));
    if (!same) loaded.function = nullptr;
  }
  return CSG_OK;
}

}  // namespace crispseg

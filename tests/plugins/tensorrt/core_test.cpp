// The plugins' core without TensorRT: core_test CASE runs one case, core_test --list names them.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>

#include "../../../crispseg/plugins/tensorrt/core/kernels.h"
#include "../../../crispseg/plugins/tensorrt/core/report.h"
#include "../../../crispseg/plugins/tensorrt/core/run.h"
#include "../../../crispseg/plugins/tensorrt/core/state.h"
#include "core_check.h"
#include "recording.h"

int failures = 0;

namespace {

void test_fields() {
  Params const select = parsed(Op::kSelectPixels);
  CHECK(select.height == 9 && select.width == 11 && select.capacity == 40 && select.upsample == CSG_BILINEAR);
  CHECK(select.threshold == 0.5f && select.logits_type == CSG_F16);
  Params const features = parsed(Op::kPixelFeatures);
  CHECK(features.features.features == 4 && features.features.kinds[3] == 3 && features.features.values[3] == 0.25f);
  CHECK(features.features.bgr == 1 && features.features.mean[2] == 3.0f && features.columns == 32);
  // Text without the NUL that the parser counts, numbers as other types, defaults of the contract.
  Params p = parsed(Op::kSelectPixels, node(Op::kSelectPixels).set("upsample", "nearest", false));
  CHECK(p.upsample == CSG_NEAREST);
  p = parsed(Op::kSelectPixels, node(Op::kSelectPixels).drop("upsample").drop("logits_type"));
  CHECK(p.upsample == CSG_NEAREST && p.logits_type == CSG_F32);
  CHECK(parsed(Op::kEnsembleLogits, node(Op::kEnsembleLogits).drop("mode")).gated == 1);
  int64_t const wide = 77;
  double const threshold = 0.75;
  Node others = node(Op::kSelectPixels).drop("capacity").drop("threshold");
  others.fields.push_back({"capacity", &wide, FieldType::kInt64, 1});
  others.fields.push_back({"threshold", &threshold, FieldType::kFloat64, 1});
  p = parsed(Op::kSelectPixels, others);
  CHECK(p.capacity == 77 && p.threshold == 0.75f);
  for (int32_t i = 0; i < kOps; ++i) {
    Op const op = static_cast<Op>(i);
    for (Field const &field : node(op).fields) {
      bool listed = !std::strncmp(field.name, "plugin_", 7);
      for (FieldName const &name : field_names(op)) listed = listed || !std::strcmp(name.name, field.name);
      CHECK(listed);
    }
  }
}

void test_shapes() {
  std::map<Op, std::string> const expected = {
      {Op::kSelectPixels, "25 40,2 1 1 25"}, {Op::kPixelFeatures, "40,32"}, {Op::kLogitsAt, "40,5"},
      {Op::kSubmanifoldMap, "40,9"},         {Op::kDownMap, "20,2 1 20,9 40,9 40"},
      {Op::kSparseConv2d, "40,48 40,48 40,48"}, {Op::kEnsembleLogits, "40,5"}, {Op::kScatterLabels, "25 25"}};
  for (auto const &row : expected) {
    Params const p = parsed(row.first);
    std::vector<Dims> dims = input_dims(row.first);
    CHECK(static_cast<int>(dims.size()) == input_count(p));
    Dims out[8];
    std::string error, found;
    if (!infer_shapes(p, dims.data(), out, error)) std::printf("%s\n", error.c_str()), ++failures;
    for (int i = 0; i < output_count(p); ++i) found += (i ? " " : "") + text(out[i]);
    SAME(found, row.second);
    CHECK(check_shapes(p, dims.data(), out, error));
    // Every fixed dimension matters; unknown ones pass; a wrong rank or output is refused.
    for (size_t i = 0; i < dims.size(); ++i) {
      Dims const kept = dims[i];
      dims[i].rank += 1;
      CHECK(!infer_shapes(p, dims.data(), out, error));
      dims[i] = kept;
      for (int32_t axis = 0; axis < kept.rank; ++axis) {
        dims[i].d[axis] = -1;
        if (!infer_shapes(p, dims.data(), out, error)) std::printf("%s\n", error.c_str()), ++failures;
        dims[i].d[axis] = -2;
        CHECK(!infer_shapes(p, dims.data(), out, error));
        dims[i].d[axis] = int64_t{1} << 31;
        CHECK(!infer_shapes(p, dims.data(), out, error));
        dims[i] = kept;
      }
    }
    CHECK(infer_shapes(p, dims.data(), out, error));
    out[output_count(p) - 1].d[0] += 1;
    CHECK(!check_shapes(p, dims.data(), out, error));
    CHECK(error.find(op_name(row.first)) != std::string::npos);
  }
}

void test_down_capacity() {
  Dims out[8], in[2];
  in[0].rank = 2, in[0].d[1] = 2, in[1].rank = 1, in[1].d[0] = 1;
  auto const rows = [&](int h, int w, int n, int limit) {
    Node from = node(Op::kDownMap).set("height", h).set("width", w).set("capacity_out", limit);
    Params const p = parsed(Op::kDownMap, from);
    std::string error;
    in[0].d[0] = n;
    CHECK(infer_shapes(p, in, out, error));
    return out[0].d[0];
  };
  CHECK(rows(1024, 2048, 1000, 0) == 4000);
  CHECK(rows(1024, 2048, 600000, 0) == 511 * 1023);
  CHECK(rows(1024, 2048, 600000, 70000) == 70000);
  CHECK(rows(1024, 2048, 1000, 70000) == 4000);
  CHECK(rows(1024, 2048, 2000000000, 0) == 511 * 1023);
  CHECK(rows(2, 2, 4, 0) == 1);
  CHECK(rows(0, 0, 1, 0) == 1);
}

void test_limits() {
  std::string error;
  Dims out[8];
  Params p = parsed(Op::kSelectPixels);
  std::vector<Dims> dims = input_dims(Op::kSelectPixels);
  dims[0].d[1] = 257;
  CHECK(!infer_shapes(p, dims.data(), out, error) && error.find("256 classes") != std::string::npos);
  p = parsed(Op::kPixelFeatures);  // 3 + 2 + 2 C columns in 32
  dims = input_dims(Op::kPixelFeatures);
  dims[3].d[1] = 13;
  CHECK(infer_shapes(p, dims.data(), out, error));
  dims[3].d[1] = 14;
  CHECK(!infer_shapes(p, dims.data(), out, error) && error.find("32 columns") != std::string::npos);
  p = parsed(Op::kEnsembleLogits);
  dims = input_dims(Op::kEnsembleLogits);
  dims[1].d[1] = 4;
  CHECK(!infer_shapes(p, dims.data(), out, error) && error.find("at least 5") != std::string::npos);
}

void test_types() {
  auto const types = [](Params const &p) {
    std::string made;
    for (int i = 0; i < input_count(p) + output_count(p); ++i) made += "FHI"[static_cast<int>(tensor_type(p, i))];
    return made;
  };
  SAME(types(parsed(Op::kSelectPixels)), "HIIIII");
  SAME(types(parsed(Op::kPixelFeatures)), "IIIFH");
  SAME(types(parsed(Op::kLogitsAt)), "FIIF");
  SAME(types(parsed(Op::kSubmanifoldMap)), "III");
  SAME(types(parsed(Op::kDownMap)), "IIIIIII");
  SAME(types(parsed(Op::kSparseConv2d)), "HIIIFHFFFFIHHH");
  SAME(types(parsed(Op::kEnsembleLogits)), "FHIFF");
  SAME(types(parsed(Op::kScatterLabels)), "IIIIFII");
  // int8 rows are words; dequant comes with them; y may be fp32 and a residual fp16.
  Node from = node(Op::kSparseConv2d).set("x_type", 2).set("inputs", 0x42d).set("outputs", 3 - 2).set("taps", 1);
  from.set("y_type", 0).set("cout", 48);
  Params p = parsed(Op::kSparseConv2d, from);
  SAME(types(p), "IIIHFF");
  SAME(std::string(tensor_name(p, 4)), "dequant");
  p = parsed(Op::kSparseConv2d, from.set("y_type", 2).set("y_quant", std::vector<float>{0.1f}).set("cout", 64));
  SAME(types(p), "IIIHFI");
  Shape const shape = output_shape(p, 0);
  CHECK(shape.d[1].kind == Dim::kConstant && shape.d[1].constant == 16);
}

void test_state() {
  for (int32_t i = 0; i < kOps; ++i) {
    Op const op = static_cast<Op>(i);
    Params const p = parsed(op);
    std::vector<int32_t> const state = write_state(p);
    std::string error;
    Params back;
    CHECK(state.size() * 4 == state_bytes());
    // At an address without alignment.
    std::vector<char> bytes(state_bytes() + 1);
    std::memcpy(bytes.data() + 1, state.data(), state_bytes());
    CHECK(read_state(op, bytes.data() + 1, state_bytes(), back, error));
    CHECK(write_state(back) == state);
    CHECK(!read_state(op, nullptr, 0, back, error));
    CHECK(!read_state(op, bytes.data() + 1, state_bytes() - 4, back, error));
    CHECK(!read_state(op, bytes.data() + 1, state_bytes() + 4, back, error));
    CHECK(!read_state(static_cast<Op>((i + 1) % kOps), bytes.data() + 1, state_bytes(), back, error));
    CHECK(error.find("crispseg build") != std::string::npos);
    for (size_t at = 1; at < bytes.size(); ++at) {  // any damaged byte
      bytes[at] = static_cast<char>(bytes[at] ^ 0x10);
      CHECK(!read_state(op, bytes.data() + 1, state_bytes(), back, error));
      bytes[at] = static_cast<char>(bytes[at] ^ 0x10);
    }
    // A state with a right checksum and wrong values goes no further than validate().
    Params bad = p;
    bad.inputs = 1 << 20;
    std::vector<int32_t> const forged = write_state(bad);
    CHECK(!read_state(op, forged.data(), state_bytes(), back, error) && error.find("inputs") != std::string::npos);
    bad = p;
    bad.op = static_cast<Op>(99);
    std::vector<int32_t> const other = write_state(bad);
    CHECK(!read_state(op, other.data(), state_bytes(), back, error));
  }
}

// Runs an op with input i at address 0x10 * (i + 1), output i at 0x1000 * (i + 1), scratch at 0xf00, stream 0xabc.
std::vector<std::string> calls(Params const &p, std::vector<Dims> const &dims) {
  void const *inputs[12];
  void *outputs[5];
  Dims out[8];
  std::string error;
  if (!infer_shapes(p, dims.data(), out, error)) std::printf("%s\n", error.c_str()), ++failures;
  for (int i = 0; i < input_count(p); ++i) inputs[i] = reinterpret_cast<void *>(uintptr_t{0x10} * (i + 1));
  for (int i = 0; i < output_count(p); ++i) outputs[i] = reinterpret_cast<void *>(uintptr_t{0x1000} * (i + 1));
  recorded().clear();
  int const status = run(p, {nullptr, reinterpret_cast<void *>(0xabc), dims.data(), out, inputs, outputs,
                             reinterpret_cast<void *>(0xf00)});
  CHECK(status == answer);
  std::vector<std::string> made;
  for (Recorded const &call : recorded()) made.push_back(call.text);
  return made;
}
std::string call(Op op, size_t index = 0) {
  std::vector<std::string> const all = calls(parsed(op), input_dims(op));
  return index < all.size() ? all[index] : "no such call";
}

void test_calls() {
  SAME(call(Op::kSelectPixels),
       "select s=abc type=1 logits=10 C=5 h=4 w=6 H=9 W=11 up=1 threshold=0.5 capacity=40 labels=1000 confidence=5000 "
       "coords=2000 count=3000 found=4000 scratch=f00 bytes=9011");
  SAME(call(Op::kPixelFeatures),
       "features image=10 H=9 W=11 coords=20 count=30 capacity=40 yi=40 ldyi=5 C=5 kinds=0123 value=0.25 mean=3 std=4 "
       "bgr=1 type=1 x=1000 ldx=32");
  SAME(call(Op::kLogitsAt),
       "logits type=0 logits=10 C=5 h=4 w=6 H=9 W=11 up=2 coords=20 count=30 capacity=40 y=1000 ldy=5");
  SAME(call(Op::kSubmanifoldMap),
       "submanifold coords=10 count=20 capacity=40 H=9 W=11 map=1000 scratch=f00 bytes=18011");
  SAME(call(Op::kDownMap),
       "down coords=10 count=20 capacity=40 H=9 W=11 extent=1 capacity_out=20 coords_out=1000 count_out=2000 down=3000 "
       "up=4000 scratch=f00 bytes=18011");
  SAME(call(Op::kDownMap, 1),
       "parity coords=10 count=20 capacity=40 H=9 W=11 order=5000 scratch=f00 bytes=18011");
  SAME(call(Op::kSparseConv2d),
       "conv type=1 x=10 ldx=32 map=20 order=b0 count=30 capacity=40 K=9 cin=32 cout=48 weight=40 bias=50 "
       "residual=1:60 ldr=48 relu=1 y=1:1000 ldy=48 z1=1:2000 70 80 z2=1:3000 90 a0 dequant=0 quants=0,0,0 "
       "scratch=f00 bytes=1000");
  SAME(call(Op::kEnsembleLogits),
       "gated yi=10 ldi=5 yo=1:20 ldo=16 count=30 capacity=40 C=5 hidden=6 gate=40 ye=1000 lde=5");
  SAME(call(Op::kScatterLabels), "copy to=1000 from=10 bytes=99");
  SAME(call(Op::kScatterLabels, 1), "copy to=2000 from=20 bytes=99");
  SAME(call(Op::kScatterLabels, 2),
       "scatter labels=1000 confidence=2000 H=9 W=11 coords=30 count=40 capacity=40 logits=50 ld=5 C=5");
}

void test_optional_tensors() {
  Dims const rows32 = input_dims(Op::kSparseConv2d)[0], count = input_dims(Op::kDownMap)[1];
  Node from = node(Op::kSparseConv2d).set("inputs", 0xd).set("outputs", 1).set("taps", 1).set("relu", 0);
  from.set("x_type", 0).set("y_type", 0).set("cin", 32).set("cout", 19).set("workspace", 499);
  from.drop("residual_type").drop("z1_type").drop("z2_type");
  Dims weight;
  weight.rank = 1, weight.d[0] = (4 * 32 * 19 + 2 + 3) / 4;
  SAME(calls(parsed(Op::kSparseConv2d, from), {rows32, count, weight})[0],
       "conv type=0 x=10 ldx=32 map=0 order=0 count=20 capacity=50 K=1 cin=32 cout=19 weight=30 bias=0 residual=0:0 "
       "ldr=19 relu=0 y=0:1000 ldy=19 z1=0:0 0 0 z2=0:0 0 0 dequant=0 quants=0,0,0 scratch=0 bytes=0");
  // Only z2: its scale and shift are inputs 8 and 9 of the table, positions 3 and 4 here. Scratch of exactly enough.
  from.set("inputs", 0xd | 0x300).set("outputs", 4).set("z2_type", 0).set("workspace", 500);
  Dims channels;
  channels.rank = 1, channels.d[0] = 19;
  SAME(calls(parsed(Op::kSparseConv2d, from), {rows32, count, weight, channels, channels})[0],
       "conv type=0 x=10 ldx=32 map=0 order=0 count=20 capacity=50 K=1 cin=32 cout=19 weight=30 bias=0 residual=0:0 "
       "ldr=19 relu=0 y=0:0 ldy=19 z1=0:0 0 0 z2=0:1000 40 50 dequant=0 quants=0,0,0 scratch=f00 bytes=500");
  Params p = parsed(Op::kDownMap, node(Op::kDownMap).set("outputs", 15));
  CHECK(calls(p, input_dims(Op::kDownMap)).size() == 1);
  p = parsed(Op::kSelectPixels, node(Op::kSelectPixels).set("outputs", 15));
  CHECK(calls(p, input_dims(Op::kSelectPixels))[0].find("confidence=0 ") != std::string::npos);
  p = parsed(Op::kEnsembleLogits, node(Op::kEnsembleLogits).set("mode", "entropy").set("inputs", 7));
  std::vector<Dims> dims = input_dims(Op::kEnsembleLogits);
  dims.pop_back();
  SAME(calls(p, dims)[0], "entropy yi=10 ldi=5 yo=1:20 ldo=16 count=30 capacity=40 C=5 ye=1000 lde=5");
  answer = CSG_DRIVER_ERROR;  // and nothing is enqueued after a failure
  CHECK(calls(parsed(Op::kDownMap), input_dims(Op::kDownMap)).size() == 1);
  CHECK(calls(parsed(Op::kScatterLabels), input_dims(Op::kScatterLabels)).size() == 1);
}

void test_workspace() {
  CHECK(workspace_bytes(parsed(Op::kSelectPixels)) == 9011);
  CHECK(workspace_bytes(parsed(Op::kSubmanifoldMap)) == 18011);
  CHECK(workspace_bytes(parsed(Op::kDownMap)) == 18011);
  CHECK(workspace_bytes(parsed(Op::kSparseConv2d)) == 1000);
  CHECK(workspace_bytes(parsed(Op::kLogitsAt)) == 0);
}

void test_kernels() {
  std::string error;
  CHECK(!acquire_context(error) && error.find("nvcc") != std::string::npos);
  CHECK(!set_kernels("/nowhere/kernels.bin", error) && error.find("/nowhere/kernels.bin") != std::string::npos);
  CHECK(!set_kernels(static_cast<char const *>(nullptr), error) && !set_kernels("", error));
  CHECK(!set_kernels(nullptr, 4, error) && !set_kernels("x", 0, error));
  char path[] = "/tmp/crispseg-core-XXXXXX";
  int const file = mkstemp(path);
  CHECK(file >= 0 && write(file, "kernels", 7) == 7 && close(file) == 0);
  CHECK(set_kernels(path, error));
  {
    std::shared_ptr<csg_context> const first = acquire_context(error), second = acquire_context(error);
    CHECK(first && first == second && made_contexts == 1);
    SAME(last_image, std::string("kernels\0", 8));  // PTX is text and ends with NUL
    CHECK(set_kernels("other", 5, error));
    std::shared_ptr<csg_context> const third = acquire_context(error);
    CHECK(third && third != first && live_contexts == 2 && last_image == std::string("other\0", 6));
  }
  CHECK(live_contexts == 0);
  have_context = false;
  CHECK(!acquire_context(error) && error.find("no CUDA context") != std::string::npos);
  have_context = true;
  answer = CSG_NO_DRIVER;
  CHECK(!acquire_context(error) && error == "the device said no");
  std::remove(path);
}

std::string heard;
void test_report() {
  set_sink([](char const *message) { heard = message; });
  CHECK(!report("trouble"));
  SAME(heard, "crispseg: trouble");
  SAME(std::string(last_report()), "crispseg: trouble");
  CHECK(!report(std::string(5000, 'x')) && heard.size() < 2000);
}

}  // namespace

int main(int argc, char **argv) {
  std::map<std::string, std::function<void()>> const cases = {
      {"fields", test_fields},     {"bad_fields", test_bad_fields}, {"shapes", test_shapes},
      {"limits", test_limits},     {"down_capacity", test_down_capacity}, {"types", test_types},
      {"state", test_state},       {"calls", test_calls},           {"optional_tensors", test_optional_tensors},
      {"workspace", test_workspace}, {"kernels", test_kernels},     {"report", test_report}};
  std::string const name = argc > 1 ? argv[1] : "";
  if (name == "--list") {
    for (auto const &one : cases) std::printf("%s\n", one.first.c_str());
    return 0;
  }
  auto const found = cases.find(name);
  if (found == cases.end()) return 2;
  found->second();
  return failures ? 1 : 0;
}

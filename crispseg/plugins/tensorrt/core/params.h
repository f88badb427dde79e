/* Parameters of the TensorRT plugins, free of TensorRT headers.
 *
 * What a node looks like when it reaches a plugin
 * -----------------------------------------------
 * The exported file holds the ops of the contract (crispseg/plugins/ops.py). engines/tensorrt/strip.py rewrites those
 * nodes in memory before the parser sees them, because three things of the contract have no form in TensorRT: an
 * optional input that is absent (the parser hands a plugin only the inputs that have a name), uint8 tensors between
 * layers (plugins may not have them, NvInferRuntimePlugin.h: "kBOOL and kUINT8 are not supported"), and weights in the
 * order that the kernels read. All added attributes are ints (int32), except the three *_quant (float).
 *
 * 1. Connected tensors. Attribute `inputs`: bit i is set when input i of the table below is connected; attribute
 *    `outputs` the same. Both are required on every node. Names that are "" are deleted from node.input and
 *    node.output: the plugin receives the connected tensors in table order, without gaps.
 * 2. Bytes. uint8 tensors and int8 rows travel as int32 words, which no TensorRT version converts, rescales or refuses;
 *    the bytes in memory are the plain uint8 or int8 array.
 *      image               uint8 [H,W,3] -> int32 [ceil(H*W*3/4)]
 *      labels, confidence  uint8 [H,W]   -> int32 [ceil(H*W/4)]
 *      int8 rows           int8 [N,C]    -> int32 [N,C/4]      (C is a multiple of 32, see 4)
 *    This holds for graph inputs and outputs too: the caller binds its byte buffer, rounded up to whole words.
 * 3. Types. Attribute `<tensor>_type` of every tensor marked T: 0 = fp32, 1 = fp16, 2 = int8 (words). Default 0. A
 *    plugin accepts exactly these types in linear format, so weak typing (8.5, 8.6) reformats around it and strong
 *    typing is consistent. Coordinates, counts, maps and orders are int32; everything without T is fp32.
 * 4. Widths. Rows of fp16 have a multiple of 16 columns and rows of int8 a multiple of 32; rows of fp32 any number.
 *    Where the network has fewer (PixelFeatures; the classifier, if its y is fp16), strip.py pads weight, bias, scale
 *    and shift with zeros and says the padded `cin`, `cout`; PixelFeatures writes `columns` columns, zeros behind its
 *    features.
 * 5. Weights. `weight` of SparseConv2d is csg_pack_weight(x_type, ...) of the padded fp32 [taps,cin,cout] array, its
 *    bytes (csg_packed_bytes, filled up with zeros to whole words) as an int32 [words] initialiser, attribute packed=1.
 *    int8: the scales that csg_pack_weight returns, times the scale of x, are the input `dequant`.
 *    Gate of EnsembleLogits: w1 b1 w2 b2 w3 b3 w4 b4 flattened and joined, one fp32 [n] initialiser, attribute
 *    `hidden` = D.
 * 6. `order` is an optional speed-up: output 4 of DownMap (rows of the finer level grouped by parity), input 11 of
 *    those SparseConv2d whose map is output `up` of the same DownMap. `workspace` (bytes, default 0) is another: with
 *    csg_conv_workspace bytes of scratch SparseConv2d splits long sums over few rows; a value that turns out too small
 *    for the device is not used. TensorRT keeps one workspace for all layers, so 40 MiB on every one costs 40 MiB.
 *
 * Op             bit  inputs                                 bit  outputs                      attributes
 * SelectPixels   0    logits T (0, 1) [1,C,h,w]              0    labels words                 height width upsample
 *                                                            1    coords [capacity,2]          threshold capacity
 *                                                            2    count [1]                    logits_type
 *                                                            3    found [1]
 *                                                            4    confidence words (optional)
 * PixelFeatures  0    image words                            0    x T (0, 1) [N,columns]       features channel_order
 *                1,2  coords [N,2], count [1]                                                  mean std height width
 *                3    yi [N,C] (optional)                                                      columns x_type
 * LogitsAt       0    logits T (0, 1) [1,C,h,w]              0    yi [N,C]                     height width upsample
 *                1,2  coords, count                                                            logits_type
 * SubmanifoldMap 0,1  coords, count                          0    map [N,9]                    height width
 * DownMap        0,1  coords, count                          0    coords_out [M,2]             height width extent
 *                                                            1    count_out [1]                capacity_out (0 = room
 *                                                            2    down [M,9]                   for any input, else the
 *                                                            3    up [N,9]                     limit of M)
 *                                                            4    order [N] (optional)
 * SparseConv2d   0    x T [Nin,cin]                          0    y T [M,cout] (optional)      relu taps cin cout
 *                1    map [M,taps] (optional, then taps=1)   1    z1 T [M,cout] (optional)     packed
 *                2    count [1]                              2    z2 T [M,cout] (optional)     x_type residual_type
 *                3    weight words                                                             y_type z1_type z2_type
 *                4    bias [cout] (optional)                                                  y_quant z1_quant z2_quant
 *                5    residual T (0, 1) [M,cout] (optional)                                    workspace
 *                6..9 scale1 shift1 scale2 shift2 [cout] (optional)
 *                10   dequant [cout] (exactly when x is int8)
 *                11   order [M] (optional)
 * EnsembleLogits 0    yi [N,C]                               0    ye [N,C]                     mode hidden yo_type
 *                1    yo T (0, 1) [N,>=C]
 *                2    count [1]
 *                3    gate [n] (exactly when mode is gated)
 * ScatterLabels  0,1  labels, confidence words               0    labels_out words             height width
 *                2,3  coords, count                          1    confidence_out words         (written by strip.py)
 *                4    ye [N,C]
 *
 * N is the capacity of a level: the first dimension of its coords. M = rows of map, or of x without one; for DownMap
 * M = max(1, min(4 N, ((H-1)/2) * ((W-1)/2))), at most capacity_out if that is given.
 */
#ifndef CRISPSEG_TENSORRT_PARAMS_H
#define CRISPSEG_TENSORRT_PARAMS_H
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "crispseg_cuda.h"

namespace crispseg {
namespace plugin {

enum class Op : int32_t {
  kSelectPixels, kPixelFeatures, kLogitsAt, kSubmanifoldMap, kDownMap, kSparseConv2d, kEnsembleLogits, kScatterLabels
};
constexpr int32_t kOps = 8;

/* Contract version: also the plugin_version of every node. */
constexpr char const *kPluginVersion = "1";
constexpr int32_t kMaxDim = 1 << 20; /* rows or columns of a frame */
constexpr int32_t kMaxChannels = 1 << 16;

char const *op_name(Op op);

/* One field as a creator receives it; the shells translate nvinfer1::PluginField to this. */
enum class FieldType : int32_t { kInt32, kInt64, kFloat32, kFloat64, kChar, kOther };
struct Field {
  char const *name;
  void const *data;
  FieldType type;
  int32_t length;
};

struct FieldName {
  char const *name;
  FieldType type;
  int32_t length; /* 0 = any (text) */
};
/* Names of all attributes of an op, plus the serialised state (kStateField). */
std::vector<FieldName> const &field_names(Op op);
/* A plugin that is recreated gets its whole state as one int32 array under this name, and nothing else. */
constexpr char const *kStateField = "crispseg_state";

/* Every parameter of every op; those that an op does not have keep their defaults. All are plain values, so a state is
 * a fixed list of numbers. */
struct Params {
  Op op = Op::kSelectPixels;
  int32_t inputs = 0, outputs = 0;
  int32_t height = 0, width = 0, capacity = 0, capacity_out = 0;
  int32_t upsample = CSG_NEAREST, extent = CSG_EXTENT_ACTIVE, gated = 0, hidden = 0;
  int32_t relu = 0, taps = 0, cin = 0, cout = 0, packed = 0, workspace = 0, columns = 0;
  int32_t logits_type = 0, x_type = 0, residual_type = 0, y_type = 0, z1_type = 0, z2_type = 0, yo_type = 0;
  float threshold = 0.0f, y_quant = 0.0f, z1_quant = 0.0f, z2_quant = 0.0f;
  csg_features features{};

  bool has_input(int bit) const { return (inputs >> bit) & 1; }
  bool has_output(int bit) const { return (outputs >> bit) & 1; }
};

/* Fills `params` from named fields and validates it. False: `error` names the op, the field, what was expected and
 * found. Unknown fields are an error, but for those of the parser (plugin_version, plugin_namespace). */
bool parse_fields(Op op, std::vector<Field> const &fields, Params &params, std::string &error);
/* Range and combination checks; parse_fields and read_state call it. */
bool validate(Params const &params, std::string &error);

}  // namespace plugin
}  // namespace crispseg
#endif

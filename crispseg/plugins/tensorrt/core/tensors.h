/* Tensors of the plugins: which are connected, their types, and the shapes of outputs (table in params.h). */
#ifndef CRISPSEG_TENSORRT_TENSORS_H
#define CRISPSEG_TENSORRT_TENSORS_H
#include "params.h"

namespace crispseg {
namespace plugin {

enum class Type : int32_t { kF32, kF16, kI32 };

/* One role of an op. `typed` names the parameter with the csg_type of a tensor marked T. */
struct Role {
  char const *name;
  bool optional;
  Type type;
  int32_t Params::*typed;
};
std::vector<Role> const &input_roles(Op op);
std::vector<Role> const &output_roles(Op op);

/* Connected tensors: how many, the position of a bit among them (or -1), the bit at a position (in range). */
int input_count(Params const &params);
int output_count(Params const &params);
int input_position(Params const &params, int bit);
int output_position(Params const &params, int bit);
int input_bit(Params const &params, int position);
int output_bit(Params const &params, int position);
/* Type at position 0 .. inputs + outputs - 1, inputs first. */
Type tensor_type(Params const &params, int position);
/* Name at that position, for messages. */
char const *tensor_name(Params const &params, int position);

struct Dims {
  int32_t rank = 0;
  int64_t d[8] = {};
};

/* One dimension of an output in terms of the inputs: the same rule serves numbers and TensorRT's expressions. */
struct Dim {
  enum Kind { kConstant, kInput, kScaled } kind; /* kScaled: min(scale * input dimension, constant) */
  int64_t constant;
  int32_t input, axis; /* position among the connected inputs */
  int64_t scale;
};
struct Shape {
  int32_t rank;
  Dim d[2];
};
Shape output_shape(Params const &params, int output);

/* Checks the inputs' dimensions (-1 = not known yet, accepted) and works out the outputs'. */
bool infer_shapes(Params const &params, Dims const *inputs, Dims *outputs, std::string &error);
/* The same, and compares with the outputs that TensorRT gives. */
bool check_shapes(Params const &params, Dims const *inputs, Dims const *outputs, std::string &error);

/* Scratch in bytes; depends on the parameters alone. */
size_t workspace_bytes(Params const &params);

/* int32 words that hold so many bytes. */
constexpr int64_t words(int64_t bytes) { return (bytes + 3) / 4; }

}  // namespace plugin
}  // namespace crispseg
#endif

// Reads plugin nodes as the parser would hand them over, and says what the plugins' core makes of them.
// Input, one word a line break or blank: "node OP", then "attribute NAME int|float|text COUNT VALUES...", then
// "input TYPE RANK DIMS..." (0 = fp32, 1 = fp16, 2 = int32), then "end". Output for each node: "ok N", then N lines
// "TYPE RANK DIMS...", or "error TEXT".
#include <iostream>
#include <list>
#include <string>
#include <vector>

#include "params.h"
#include "tensors.h"

using namespace crispseg;
using namespace crispseg::plugin;

int main() {
  std::string word, op_text, name, kind, error;
  while (std::cin >> word && word == "node") {
    std::cin >> op_text;
    std::list<std::string> texts;
    std::list<std::vector<int32_t>> ints;
    std::list<std::vector<float>> floats;
    std::vector<Field> fields;
    std::vector<Dims> inputs;
    std::vector<int> types;
    while (std::cin >> word && word != "end") {
      if (word == "attribute") {
        int count = 0;
        std::cin >> name >> kind >> count;
        texts.push_back(name);
        char const *label = texts.back().c_str();
        if (kind == "int") {
          ints.emplace_back(count);
          for (auto &v : ints.back()) std::cin >> v;
          fields.push_back({label, ints.back().data(), FieldType::kInt32, count});
        } else if (kind == "float") {
          floats.emplace_back(count);
          for (auto &v : floats.back()) std::cin >> v;
          fields.push_back({label, floats.back().data(), FieldType::kFloat32, count});
        } else {
          std::string value;
          if (count) std::cin >> value;
          texts.push_back(value);
          fields.push_back({label, texts.back().c_str(), FieldType::kChar, static_cast<int32_t>(value.size() + 1)});
        }
      } else if (word == "input") {
        Dims dims;
        int type = 0;
        std::cin >> type >> dims.rank;
        for (int i = 0; i < dims.rank; ++i) std::cin >> dims.d[i];
        inputs.push_back(dims);
        types.push_back(type);
      }
    }
    Params params;
    error.clear();
    int op = 0;
    while (op < kOps && op_text != op_name(static_cast<Op>(op))) ++op;
    if (op == kOps) {
      std::cout << "error no op " << op_text << "\n";
      continue;
    }
    if (!parse_fields(static_cast<Op>(op), fields, params, error)) {
      std::cout << "error " << error << "\n";
      continue;
    }
    if (static_cast<int>(inputs.size()) != input_count(params)) {
      std::cout << "error " << op_text << " takes " << input_count(params) << " inputs, has " << inputs.size() << "\n";
      continue;
    }
    for (int i = 0; i < input_count(params) && error.empty(); ++i)
      if (static_cast<int>(tensor_type(params, i)) != types[i])
        error = std::string(op_text) + ": type of " + tensor_name(params, i) + " is " + std::to_string(types[i]);
    std::vector<Dims> outputs(8);
    if (!error.empty() || !infer_shapes(params, inputs.data(), outputs.data(), error)) {
      std::cout << "error " << error << "\n";
      continue;
    }
    std::cout << "ok " << output_count(params) << "\n";
    for (int i = 0; i < output_count(params); ++i) {
      std::cout << static_cast<int>(tensor_type(params, input_count(params) + i)) << " " << outputs[i].rank;
      for (int k = 0; k < outputs[i].rank; ++k) std::cout << " " << outputs[i].d[k];
      std::cout << "\n";
    }
  }
}

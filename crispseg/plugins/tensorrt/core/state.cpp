#include "state.h"

#include <cstring>

namespace crispseg {
namespace plugin {
namespace {

constexpr int32_t kMagic = 0x50545343; /* "CSTP" */

/* Both directions walk this list, so it is the layout. Changing it needs a new kStateVersion. */
template <class P, class Visit>
void walk(P &p, Visit &&visit) {
  visit(p.inputs), visit(p.outputs);
  visit(p.height), visit(p.width), visit(p.capacity), visit(p.capacity_out);
  visit(p.upsample), visit(p.extent), visit(p.gated), visit(p.hidden);
  visit(p.relu), visit(p.taps), visit(p.cin), visit(p.cout), visit(p.packed);
  visit(p.workspace), visit(p.columns);
  visit(p.logits_type), visit(p.x_type), visit(p.residual_type), visit(p.y_type), visit(p.z1_type), visit(p.z2_type);
  visit(p.yo_type);
  visit(p.threshold), visit(p.y_quant), visit(p.z1_quant), visit(p.z2_quant);
  visit(p.features.features), visit(p.features.bgr);
  for (auto &kind : p.features.kinds) visit(kind);
  for (auto &value : p.features.values) visit(value);
  for (auto &value : p.features.mean) visit(value);
  for (auto &value : p.features.std) visit(value);
}

/* FNV-1a over the words. */
int32_t checksum(std::vector<int32_t> const &words) {
  uint32_t hash = 2166136261u;
  for (int32_t word : words) {
    for (int shift = 0; shift < 32; shift += 8) {
      hash = (hash ^ ((static_cast<uint32_t>(word) >> shift) & 255u)) * 16777619u;
    }
  }
  int32_t value;
  std::memcpy(&value, &hash, 4);
  return value;
}

}  // namespace

size_t state_bytes() {
  static size_t const bytes = write_state(Params()).size() * 4;
  return bytes;
}

std::vector<int32_t> write_state(Params const &params) {
  std::vector<int32_t> words = {kMagic, kStateVersion, 0, static_cast<int32_t>(params.op)};
  walk(params, [&](auto const &value) {
    static_assert(sizeof(value) == 4, "one word a value");
    int32_t word;
    std::memcpy(&word, &value, 4);
    words.push_back(word);
  });
  words[2] = static_cast<int32_t>(words.size() + 1);
  words.push_back(checksum(words));
  return words;
}

bool read_state(Op op, void const *data, size_t bytes, Params &params, std::string &error) {
  auto const refuse = [&](char const *what, int64_t expected, int64_t found) {
    error = std::string(op_name(op)) + ": plugin state in the engine: " + what + ": expected " +
            std::to_string(expected) + ", found " + std::to_string(found) +
            "; build the engine again with crispseg build";
    return false;
  };
  if (!data || bytes != state_bytes()) {
    return refuse("bytes", static_cast<int64_t>(state_bytes()), data ? static_cast<int64_t>(bytes) : 0);
  }
  std::vector<int32_t> words(bytes / 4);
  std::memcpy(words.data(), data, bytes);
  if (words[0] != kMagic) return refuse("magic", kMagic, words[0]);
  if (words[1] != kStateVersion) return refuse("layout version", kStateVersion, words[1]);
  if (words[2] != static_cast<int32_t>(words.size())) {
    return refuse("words", static_cast<int64_t>(words.size()), words[2]);
  }
  int32_t const stored = words.back();
  words.pop_back();
  if (stored != checksum(words)) return refuse("checksum", checksum(words), stored);
  if (words[3] != static_cast<int32_t>(op)) return refuse("op", static_cast<int32_t>(op), words[3]);
  Params read;
  read.op = op;
  size_t next = 4;
  walk(read, [&](auto &value) { std::memcpy(&value, &words[next++], 4); });
  if (!validate(read, error)) return false;
  params = read;
  return true;
}

}  // namespace plugin
}  // namespace crispseg

// The table of opcodes.
#include "operations.h"

namespace cs_emu::ptx {
namespace {

Table &table() {
  static Table *the = [] {
    auto *t = new Table();
    add_integer(*t);
    add_real(*t);
    add_logic(*t);
    add_collective(*t);
    return t;
  }();
  return *the;
}

bool starts(Text text, Text with) { return text.substr(0, with.size()) == with; }

}  // namespace

const Operation *find_operation(Text opcode) {
  std::string name(opcode);
  auto it = table().find(name);
  if (it != table().end()) return &it->second;
  Operation found;
  if (const WarpInstruction *wide = find_warp_instruction(name)) {
    found.form = Form::wide;
    found.flow = wide->aligned ? Flow::aligned : Flow::next;
    found.wide = wide;
    found.run = run_wide;
  } else if (!(starts(opcode, "cvt.") && conversion(opcode, &found)) &&
             !(starts(opcode, "setp.") && set_predicate(opcode, &found)) && !access(opcode, &found))
    return nullptr;
  return &table().emplace(name, found).first->second;
}

void check_opcodes(Lexer &lexer) {
  static const Operation unknown;
  static std::unordered_map<std::string, const Operation *> seen;
  std::string key;
  int depth = 0;
  for (;;) {
    if (lexer.ended()) lexer.wrong("'}'");
    if (lexer.take('{')) {
      ++depth;
      continue;
    }
    if (lexer.take('}')) {
      if (--depth == 0) return;
      continue;
    }
    if (lexer.is(".loc") || lexer.is(".file")) {
      lexer.skip_line();
      continue;
    }
    if (lexer.word[0] != '.') {
      if (lexer.take('@')) {
        lexer.take('!');
        lexer.name();
      }
      const Text word = lexer.word;
      const int line = lexer.line();
      if (lexer.take(';')) continue;
      lexer.name();
      if (lexer.take(':')) continue;
      key.assign(word);
      auto it = seen.find(key);
      if (it == seen.end()) {
        const Operation *operation = find_operation(word);
        if (!operation) throw Refused{"line " + std::to_string(line) + ": unknown instruction " + key};
        seen.emplace(key, operation);
      }
    }
    while (!lexer.is(';')) {
      if (lexer.ended()) lexer.wrong("';'");
      lexer.next();
    }
    lexer.next();
  }
}

}  // namespace cs_emu::ptx

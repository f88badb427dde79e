// Words of PTX text: names with their dots (registers, opcodes, labels), numbers, single punctuation marks.
#pragma once
#include <cctype>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

namespace cs_emu::ptx {

typedef std::string_view Text;

struct Refused {  // a module or a function that this interpreter does not take
  std::string text;
};

class Lexer {
 public:
  Lexer(const char *begin, const char *end, int line) : p_(begin), end_(end), line_(line) { next(); }

  Text word;  // the current one; empty at the end
  int line() const { return word_line_; }
  const char *at() const { return word.data(); }
  bool is(char c) const { return word.size() == 1 && word[0] == c; }
  bool is(Text text) const { return word == text; }
  bool ended() const { return word.empty(); }

  void next() {
    skip();
    word_line_ = line_;
    const char *begin = p_;
    if (p_ == end_) {
      word = Text();
      return;
    }
    if (*p_ == '"') {
      for (++p_; p_ < end_ && *p_ != '"' && *p_ != '\n'; ++p_) {}
      if (p_ < end_) ++p_;
    } else if (named(*p_)) {
      while (p_ < end_ && (named(*p_) || (*p_ == ':' && p_ + 1 < end_ && p_[1] == ':'))) p_ += *p_ == ':' ? 2 : 1;
    } else ++p_;
    word = Text(begin, static_cast<size_t>(p_ - begin));
  }
  bool take(char c) {
    if (!is(c)) return false;
    next();
    return true;
  }
  bool take(Text text) {
    if (!is(text)) return false;
    next();
    return true;
  }
  Text name() {
    const Text found = word;
    if (found.empty() || !named(found[0])) wrong("a name");
    next();
    return found;
  }
  void expect(char c) {
    if (!take(c)) wrong(std::string("'") + c + "'");
  }
  // After the end of the line that the current word is on.
  void skip_line() {
    p_ = word.data();
    line_ = word_line_;
    while (p_ < end_ && *p_ != '\n') ++p_;
    next();
  }
  // After the '}' that closes the '{' that is the current word. Nothing inside is looked at but braces.
  void skip_braces() {
    int depth = 0;
    do {
      if (is('{')) ++depth;
      if (is('}')) --depth;
      if (ended()) wrong("'}'");
      next();
    } while (depth);
  }
  [[noreturn]] void wrong(const std::string &expected) const {
    throw Refused{"line " + std::to_string(line()) + ": expected " + expected + ", found '" + std::string(word) + "'"};
  }

 private:
  static bool named(char c) {
    static const auto table = [] {
      struct {
        bool of[256];
      } t{};
      for (int i = 0; i < 256; ++i) t.of[i] = std::isalnum(i) || i == '_' || i == '$' || i == '%' || i == '.';
      return t;
    }();
    return table.of[static_cast<unsigned char>(c)];
  }
  void skip() {
    for (; p_ < end_; ++p_) {
      if (*p_ == '\n') ++line_;
      else if (*p_ == '/' && p_ + 1 < end_ && p_[1] == '/') {
        while (p_ + 1 < end_ && p_[1] != '\n') ++p_;
      } else if (*p_ == '/' && p_ + 1 < end_ && p_[1] == '*') {
        for (p_ += 2; p_ + 1 < end_ && !(*p_ == '*' && p_[1] == '/'); ++p_) line_ += *p_ == '\n';
        if (p_ < end_) ++p_;
      } else if (*p_ != ' ' && *p_ != '\t' && *p_ != '\r') return;
    }
    if (p_ > end_) p_ = end_;
  }

  const char *p_, *end_;
  int line_, word_line_ = 0;
};

// An integer literal (decimal, hexadecimal, octal, binary, with U), or 0f / 0d: the bits. False: it is none.
inline bool read_number(Text word, uint64_t *value) {
  if (word.empty() || !std::isdigit(static_cast<unsigned char>(word[0]))) return false;
  std::string digits(word);
  int base = 10;
  size_t from = 0;
  const char second = word.size() > 1 ? word[1] : ' ';
  if (word[0] == '0' && word.size() > 1) {
    from = 2;
    if (second == 'x' || second == 'X' || second == 'f' || second == 'F' || second == 'd' || second == 'D') base = 16;
    else if (second == 'b' || second == 'B') base = 2;
    else {
      base = 8;
      from = 1;
    }
  }
  if (base != 16 || second == 'x' || second == 'X')
    if (digits.back() == 'U') digits.pop_back();
  if (from >= digits.size()) {
    *value = 0;
    return digits == "0";
  }
  char *end = nullptr;
  *value = std::strtoull(digits.c_str() + from, &end, base);
  return *end == 0;
}

}  // namespace cs_emu::ptx

// Checks of the core's tests: a failed one prints its line and the case goes on.
#pragma once
#include <cstdio>

#include "core_cases.h"

extern int failures;
#define CHECK(condition)                                              \
  do {                                                                \
    if (!(condition)) {                                               \
      std::printf("line %d: expected %s\n", __LINE__, #condition);    \
      ++failures;                                                     \
    }                                                                 \
  } while (0)

inline void same(std::string const &found, std::string const &expected, int line) {
  if (found == expected) return;
  std::printf("line %d:\n  expected %s\n  found    %s\n", line, expected.c_str(), found.c_str());
  ++failures;
}
#define SAME(found, expected) same(found, expected, __LINE__)

inline Params parsed(Op op, Node const &from) {
  Params p;
  std::string error;
  if (!parse_fields(op, from.fields, p, error)) {
    std::printf("%s\n", error.c_str());
    ++failures;
  }
  return p;
}
inline Params parsed(Op op) { return parsed(op, node(op)); }

void test_bad_fields();

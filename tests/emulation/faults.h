// A structure that a kernel takes by value.
#pragma once
struct t_pair {
  char small;
  long long large;
};

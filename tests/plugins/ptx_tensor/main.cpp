// main NAME...: runs the cases of these names; 1 when something differs, 2 for a name that is none.
#include "bench.h"

int main(int count, char **names) {
  for (int i = 1; i < count; i++) {
    const std::string name = names[i];
    if (!bench::tensor_cases(name) && !bench::copy_cases(name) && !bench::wgmma_cases(name)) return 2;
  }
  if (bench::failures) std::printf("%d differences\n", bench::failures);
  return bench::failures != 0;
}

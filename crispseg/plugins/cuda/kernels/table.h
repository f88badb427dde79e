// Every kernel, once: CS_KERNEL(name, threads, capability, (parameter types)).
//   threads     most threads of a block (what CS_LAUNCH_BOUNDS says at its definition)
//   capability  lowest compute capability of which an image has this kernel: 72, or 80 for kernels under CS_ARCH >= 800
//   parameters  by value and trivially copyable; launch() converts its arguments to these types, and the prototype that the
//               kernels see is made from them too, so that a definition with other parameters does not compile
// Structures that are passed by value are declared in params.h.
#ifndef CS_KERNEL
#error "define CS_KERNEL(name, threads, capability, parameters) before including table.h; this file has no guard"
#endif

CS_KERNEL(csk_fill_u32, 256, 72, (cs_u32 *, cs_u32, cs_i64))

// ---- front end: selection, features, logits, maps ----

// ---- convolution ----
CS_KERNEL(csk_conv_f32, 256, 72, (ConvArgs))
CS_KERNEL(csk_conv_f16_wmma_128x64, 128, 72, (ConvArgs))
CS_KERNEL(csk_conv_f16_wmma_128x32, 128, 72, (ConvArgs))
CS_KERNEL(csk_conv_i8_wmma_128x64, 128, 72, (ConvArgs))
CS_KERNEL(csk_conv_i8_wmma_128x32, 128, 72, (ConvArgs))
CS_KERNEL(csk_conv_f16_mma_128x128, 128, 80, (ConvArgs))
CS_KERNEL(csk_conv_f16_mma_128x64, 128, 80, (ConvArgs))
CS_KERNEL(csk_conv_f16_mma_128x32, 128, 80, (ConvArgs))
CS_KERNEL(csk_conv_i8_mma_128x128, 128, 80, (ConvArgs))
CS_KERNEL(csk_conv_i8_mma_128x64, 128, 80, (ConvArgs))
CS_KERNEL(csk_conv_i8_mma_128x32, 128, 80, (ConvArgs))
CS_KERNEL(csk_conv_f32_reduce, 128, 80, (ConvArgs))
CS_KERNEL(csk_conv_i32_reduce, 128, 80, (ConvArgs))

// ---- back end: ensemble, scatter ----

// ---- frames and conversion ----

#undef CS_KERNEL

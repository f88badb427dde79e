// Every kernel, once: CS_KERNEL(name, threads, capability, (parameter types)).
//   threads     most threads of a block (what CS_LAUNCH_BOUNDS says at its definition)
//   capability  lowest compute capability of which an image has this kernel: 72, 80 for kernels under CS_ARCH >= 800,
//               or 90 for those under CS_HAVE_WGMMA, which an image for 9.0 may have and no other has
//   parameters  by value and trivially copyable; launch() converts its arguments to these types, and the prototype that
//               the kernels see is made from them too, so that a definition with other parameters does not compile
// Structures that are passed by value are declared in params.h.
#ifndef CS_KERNEL
#error "define CS_KERNEL(name, threads, capability, parameters) before including table.h; this file has no guard"
#endif

CS_KERNEL(csk_fill_u32, 256, 72, (cs_u32 *, cs_u32, cs_i64))

// ---- front end: selection, features, logits, maps ----
CS_KERNEL(csk_check_logits_f32, 256, 72, (float *, int, int, cs_i32 *))
CS_KERNEL(csk_check_logits_f16, 256, 72, (cs_half *, int, int, cs_i32 *))
CS_KERNEL(csk_select_tile20_f32, 256, 72, (CsSelect))
CS_KERNEL(csk_select_tile20_f16, 256, 72, (CsSelect))
CS_KERNEL(csk_select_tile32_f32, 256, 72, (CsSelect))
CS_KERNEL(csk_select_tile32_f16, 256, 72, (CsSelect))
CS_KERNEL(csk_select_tile_f32, 256, 72, (CsSelect))
CS_KERNEL(csk_select_tile_f16, 256, 72, (CsSelect))
CS_KERNEL(csk_select_pixel32_f32, 256, 72, (CsSelect))
CS_KERNEL(csk_select_pixel32_f16, 256, 72, (CsSelect))
CS_KERNEL(csk_select_pixel_f32, 256, 72, (CsSelect))
CS_KERNEL(csk_select_pixel_f16, 256, 72, (CsSelect))
CS_KERNEL(csk_select_taps_f32, 256, 72, (CsSelect))
CS_KERNEL(csk_select_taps_f16, 256, 72, (CsSelect))
CS_KERNEL(csk_select_count, 256, 72, (CsCompact))
CS_KERNEL(csk_select_write, 256, 72, (CsCompact))
CS_KERNEL(csk_logits_at_f32, 128, 72,
          (const float *, int, CsSampling, const cs_i32 *, const cs_i32 *, int, float *, cs_i64))
CS_KERNEL(csk_logits_at_f16, 128, 72,
          (const cs_half *, int, CsSampling, const cs_i32 *, const cs_i32 *, int, float *, cs_i64))
CS_KERNEL(csk_pixel_features, 128, 72, (CsPixelFeatures))
CS_KERNEL(csk_grid_enter, 256, 72, (CsGrid, const cs_i32 *, const cs_i32 *, int, cs_i32 *))
CS_KERNEL(csk_submanifold_rows, 128, 72, (CsGrid, const cs_i32 *, const cs_i32 *, int, cs_i32 *))
CS_KERNEL(csk_down_bits, 256, 72, (CsDown))
CS_KERNEL(csk_down_sites, 256, 72, (CsDown))
CS_KERNEL(csk_down_rows, 128, 72, (CsDown))
CS_KERNEL(csk_parity_count, 256, 72, (const cs_i32 *, const cs_i32 *, int, cs_i32 *))
CS_KERNEL(csk_parity_write, 256, 72, (const cs_i32 *, const cs_i32 *, int, const cs_i32 *, cs_i32 *))

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
CS_KERNEL(csk_conv_f16_wgmma_128x128, 128, 90, (ConvArgs))
CS_KERNEL(csk_conv_i8_wgmma_128x128, 128, 90, (ConvArgs))
CS_KERNEL(csk_conv_f32_reduce, 128, 80, (ConvArgs))
CS_KERNEL(csk_conv_i32_reduce, 128, 80, (ConvArgs))

// ---- back end: ensemble, scatter ----
CS_KERNEL(csk_ensemble_gated20, 128, 72, (CsEnsemble))
CS_KERNEL(csk_ensemble_gated32, 128, 72, (CsEnsemble))
CS_KERNEL(csk_ensemble_gated_wide, 64, 72, (CsEnsemble))
CS_KERNEL(csk_ensemble_entropy, 128, 72, (CsEnsemble))
CS_KERNEL(csk_scatter_labels, 128, 72, (CsScatter))

// ---- frames and conversion ----
CS_KERNEL(csk_resize_tables, 128, 72, (int, int, int, cs_i32 *, int, int, int, cs_i32 *))
CS_KERNEL(csk_resize_columns, 128, 72, (const cs_u8 *, int, int, int, const cs_i32 *, int, cs_u8 *))
CS_KERNEL(csk_frame_pack, 128, 72, (CsPack))
CS_KERNEL(csk_to_frame, 128, 72, (const cs_u8 *, int, int, int, int, int, cs_u8 *, int, int))
CS_KERNEL(csk_overlay, 256, 72, (const cs_u8 *, const cs_u8 *, cs_i64, const cs_u8 *, int, cs_u32, cs_u8 *))
CS_KERNEL(csk_convert_rows, 256, 72, (CsConvert))

#undef CS_KERNEL

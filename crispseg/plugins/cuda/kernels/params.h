// Structures that kernels take by value. Plain numbers and pointers; the same layout on the host and on the device.
#pragma once
#include "conv_args.h"
#include "front_params.h"
#include "types.h"

#define RAZOR_TABLE kernels_baseline
#define RAZOR_NAME "baseline"
#include "kernels.inl"

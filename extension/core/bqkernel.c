/* bqkernel.c: which kernel is in use. */
#include "bqkernel.h"
#include "bqcpu.h"

const BqKernel *bq_kernel = &bq_kernel_portable;

/* Best first. */
static const BqKernel *const kernels[] = {
#ifdef BQ_HAVE_X86
	&bq_kernel_avx512,
	&bq_kernel_avx2,
#endif
#ifdef BQ_HAVE_NEON
	&bq_kernel_neon,
#endif
	&bq_kernel_portable
};

#define N_KERNELS ((int) (sizeof(kernels) / sizeof(kernels[0])))

static bool
runs_here(const BqKernel *kernel)
{
#ifdef BQ_HAVE_X86
	if (kernel == &bq_kernel_avx512)
		return (bq_cpu_features() & BQ_CPU_AVX512) != 0;
	if (kernel == &bq_kernel_avx2)
		return (bq_cpu_features() & BQ_CPU_AVX2) != 0;
#endif
	(void) kernel;
	return true;				/* portable; NEON is part of the ARM64 base */
}

bool
bq_kernel_select(const char *name)
{
	for (int i = 0; i < N_KERNELS; i++)
	{
		if (strcmp(name, "auto") != 0 && strcmp(name, kernels[i]->name) != 0)
			continue;
		if (runs_here(kernels[i]))
		{
			bq_kernel = kernels[i];
			return true;
		}
	}
	return false;
}

const char *
bq_kernel_name(int i)
{
	return i >= 0 && i < N_KERNELS ? kernels[i]->name : NULL;
}

bool
bq_kernel_available(const char *name)
{
	for (int i = 0; i < N_KERNELS; i++)
		if (strcmp(name, kernels[i]->name) == 0)
			return runs_here(kernels[i]);
	return false;
}

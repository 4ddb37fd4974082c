/* bq.c: module magic, _PG_init, settings (bq.*). */
#include "postgres.h"

#include "bq.h"
#include "core/bqkernel.h"
#include "utils/builtins.h"
#include "utils/guc.h"

#ifdef PG_MODULE_MAGIC_EXT
PG_MODULE_MAGIC_EXT(.name = "bq", .version = CppAsString2(BQ_EXTENSION_VERSION));
#else
PG_MODULE_MAGIC;
#endif

PGDLLEXPORT void _PG_init(void);

static int	kernel_setting;

/* Every kernel there is, also those of other CPUs: check_kernel() says why not. */
static const struct config_enum_entry kernel_options[] = {
	{"auto", 0, false},
	{"portable", 1, false},
	{"avx2", 2, false},
	{"avx512", 3, false},
	{"neon", 4, false},
	{NULL, 0, false}
};

static const char *
kernel_name(int setting)
{
	for (const struct config_enum_entry *option = kernel_options; option->name != NULL; option++)
		if (option->val == setting)
			return option->name;
	elog(ERROR, "unknown kernel setting %d", setting);
	return NULL;				/* keep compiler quiet */
}

static bool
check_kernel(int *newval, void **extra pg_attribute_unused(), GucSource source pg_attribute_unused())
{
	const char *name = kernel_name(*newval);
	char		available[64] = "auto";

	if (*newval == 0 || bq_kernel_available(name))
		return true;

	for (int i = 0; bq_kernel_name(i) != NULL; i++)
	{
		if (!bq_kernel_available(bq_kernel_name(i)))
			continue;
		strlcat(available, ", ", sizeof(available));
		strlcat(available, bq_kernel_name(i), sizeof(available));
	}
	GUC_check_errdetail("This CPU, or this build, cannot run kernel \"%s\".", name);
	GUC_check_errhint("Available values: %s.", available);
	return false;
}

static void
assign_kernel(int newval, void *extra pg_attribute_unused())
{
	/* cannot fail: check_kernel() has passed */
	(void) bq_kernel_select(kernel_name(newval));
}

void
_PG_init(void)
{
	DefineCustomEnumVariable("bq.kernel",
							 "Instruction set of the inner loops; all give the same results.",
							 "\"auto\" takes the best one that the CPU can run.",
							 &kernel_setting,
							 0, kernel_options,
							 PGC_USERSET, 0,
							 check_kernel, assign_kernel, NULL);
	bq_index_init();

	MarkGUCPrefixReserved("bq");
}

PG_FUNCTION_INFO_V1(bq_simd);

/* Name of the kernel in use. */
Datum
bq_simd(PG_FUNCTION_ARGS)
{
	(void) fcinfo;
	PG_RETURN_TEXT_P(cstring_to_text(bq_kernel->name));
}

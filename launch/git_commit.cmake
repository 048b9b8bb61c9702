# Writes OUTPUT, a header with the commit of the sources and its day: -DSOURCE=.. -DOUTPUT=.. ; empty where there is no repository.
set(commit "")
set(date "")
find_program(GIT git)
if(GIT)
  execute_process(COMMAND ${GIT} -C ${SOURCE} rev-parse --short=10 HEAD OUTPUT_VARIABLE commit
                  OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  execute_process(COMMAND ${GIT} -C ${SOURCE} show -s --format=%cs HEAD OUTPUT_VARIABLE date
                  OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
file(WRITE ${OUTPUT} "#define LAMINA_GIT_COMMIT \"${commit}\"\n#define LAMINA_GIT_DATE \"${date}\"\n")

# Writes OUTPUT, a header with the commit of the sources: -DSOURCE=.. -DOUTPUT=.. ; empty where there is no repository.
set(commit "")
find_program(GIT git)
if(GIT)
  execute_process(COMMAND ${GIT} -C ${SOURCE} rev-parse --short=10 HEAD OUTPUT_VARIABLE commit
                  OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
file(WRITE ${OUTPUT} "#define LAMINA_GIT_COMMIT \"${commit}\"\n")

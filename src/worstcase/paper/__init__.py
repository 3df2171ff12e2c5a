"""The paper's numbers, and its figures and tables as sections of the report."""

from worstcase.paper import attacks, pulses, training, worst_chip

SECTIONS = {  # in the order of the paper
    "fig1": attacks.fig1,
    "table1": attacks.table1,
    "table2": attacks.table2,
    "fig3": worst_chip.fig3,
    "fig4": worst_chip.fig4,
    "table3": worst_chip.table3,
    "fig5": worst_chip.fig5,
    "fig6": worst_chip.fig6,
    "table4": attacks.table4,
    "fig7": attacks.fig7,
    "table5": training.table5,
    "fig8a": training.fig8a,
    "fig8b": training.fig8b,
    "fig8c": training.fig8c,
    "table6": training.table6,
    "methods": training.compared_methods,
    "swim": pulses.shared_pulses,
    "monte_carlo": attacks.sampled_chips,
}
"""For `worstcase.report.write.write_report`. Each returns None if results for it are missing."""

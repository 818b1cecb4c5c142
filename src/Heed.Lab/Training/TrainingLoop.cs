using System.Diagnostics;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Lab.Training;

/// <summary>
/// Trains any module: the loss of a step comes from a delegate, the rest (optimizer, schedule, clipping, validation, checkpoints, progress) is the same for every recipe. A run depends on its plan
/// and its losses alone, so one that was stopped and taken up again ends where an unbroken one ends.
/// </summary>
public sealed class TrainingLoop : IDisposable
{
    // Enough steps that the display is calm, few enough that it follows.
    private const int SmoothedSteps = 20;

    private readonly nn.Module _model;
    private readonly TrainingPlan _plan;
    private readonly string _identity;
    private readonly string? _checkpointPath;
    private readonly OptimizerHelper _optimizer;
    private readonly List<Parameter> _parameters;

    /// <summary>Prepares a run.</summary>
    /// <param name="model">The module; it stays the caller's.</param>
    /// <param name="plan">How long and how fast.</param>
    /// <param name="identity">All settings that decide the result, a line <c>name=value</c> each: a checkpoint is taken up only by a run with the same.</param>
    /// <param name="checkpointPath">Where checkpoints go; null: none are kept.</param>
    public TrainingLoop(nn.Module model, TrainingPlan plan, string identity, string? checkpointPath = null)
    {
        plan.Validate();
        _model = model;
        _plan = plan;
        _identity = identity;
        _checkpointPath = checkpointPath;
        _parameters = model.parameters().Where(parameter => parameter.requires_grad).ToList();
        var matrices = _parameters.Where(parameter => parameter.dim() > 1).ToList();
        var vectors = _parameters.Where(parameter => parameter.dim() <= 1).ToList();
        (List<Parameter> Parameters, double Decay)[] groups = [.. new[] { (matrices, plan.WeightDecay), (vectors, 0) }.Where(group => group.Item1.Count > 0)];
        _optimizer = plan.Optimizer == TrainingOptimizer.Sgd
            ? optim.SGD(groups.Select(group => new SGD.ParamGroup(group.Parameters, plan.LearningRate, plan.Beta1, weight_decay: group.Decay)), plan.LearningRate, plan.Beta1)
            : optim.AdamW(groups.Select(group => new AdamW.ParamGroup(group.Parameters, plan.LearningRate, plan.Beta1, plan.Beta2, 1e-8, group.Decay)), plan.LearningRate, plan.Beta1, plan.Beta2);
    }

    /// <summary>Loss of a step (counted from 0): a scalar with a gradient. Everything it makes is disposed after the step.</summary>
    public required Func<long, Tensor> Loss { get; init; }

    /// <summary>Items (tokens, images ...) of a step, for the speed.</summary>
    public Func<long, long> Items { get; init; } = _ => 1;

    /// <summary>What to measure between steps, without gradient; null: nothing.</summary>
    public Func<double>? Validation { get; init; }

    /// <summary>What else to note at every validation, by name, without gradient; null: nothing.</summary>
    public Func<IReadOnlyDictionary<string, double>>? Observe { get; init; }

    /// <summary>Time between two checkpoints.</summary>
    public TimeSpan CheckpointEvery { get; init; } = TimeSpan.FromMinutes(1);

    /// <summary>What happened so far.</summary>
    public TrainingHistory History { get; private set; } = new();

    /// <summary>Steps done.</summary>
    public long Step => History.Points.Count;

    /// <summary>Takes up the checkpoint where there is one.</summary>
    /// <returns>Whether there was one.</returns>
    /// <exception cref="InvalidDataException">The checkpoint is damaged.</exception>
    /// <exception cref="ArgumentException">The checkpoint belongs to a run with other settings.</exception>
    public bool TryResume()
    {
        if (_checkpointPath is null || !File.Exists(_checkpointPath))
        {
            return false;
        }

        History = TrainingCheckpoint.Load(_checkpointPath, _identity, _model, _optimizer);
        return true;
    }

    /// <summary>Trains to the end of the plan.</summary>
    /// <param name="progress">Told after every step; null: nobody.</param>
    /// <param name="cancellation">When cancelled, the run saves a checkpoint and stops after the current step.</param>
    /// <exception cref="OperationCanceledException">The run was cancelled; where checkpoints are kept, it can be taken up.</exception>
    /// <exception cref="InvalidOperationException">The loss stopped being a number.</exception>
    public void Run(Action<TrainingProgress>? progress = null, CancellationToken cancellation = default)
    {
        var recent = new Queue<(double Seconds, long Items, double Loss)>();
        var sinceCheckpoint = Stopwatch.StartNew();
        _model.train();
        while (Step < _plan.Steps)
        {
            if (cancellation.IsCancellationRequested)
            {
                SaveCheckpoint();
                cancellation.ThrowIfCancellationRequested();
            }

            var clock = Stopwatch.StartNew();
            var items = Items(Step);
            var point = TakeStep();
            History.Points.Add(point);
            History.Items += items;
            recent.Enqueue((clock.Elapsed.TotalSeconds, items, point.Loss));
            if (recent.Count > SmoothedSteps)
            {
                recent.Dequeue();
            }

            if (Validation is not null && (Step % _plan.ValidateEvery == 0 || Step == _plan.Steps))
            {
                Validate();
            }

            History.Seconds += clock.Elapsed.TotalSeconds;
            if (sinceCheckpoint.Elapsed >= CheckpointEvery)
            {
                SaveCheckpoint();
                sinceCheckpoint.Restart();
            }

            var seconds = recent.Sum(step => step.Seconds);
            progress?.Invoke(new TrainingProgress(
                Step, _plan.Steps, recent.Average(step => step.Loss), History.Validations.LastOrDefault()?.Value, recent.Sum(step => step.Items) / seconds,
                TimeSpan.FromSeconds(History.Seconds), TimeSpan.FromSeconds((_plan.Steps - Step) * seconds / recent.Count)));
        }

        SaveCheckpoint();
        _model.eval();
    }

    /// <summary>Writes a checkpoint now.</summary>
    public void SaveCheckpoint()
    {
        if (_checkpointPath is not null)
        {
            TrainingCheckpoint.Save(_checkpointPath, _identity, History, _model, _optimizer);
        }
    }

    /// <inheritdoc/>
    public void Dispose() => _optimizer.Dispose();

    private TrainingPoint TakeStep()
    {
        using var scope = NewDisposeScope();
        var rate = _plan.LearningRateAt(Step);
        foreach (var group in _optimizer.ParamGroups)
        {
            group.LearningRate = rate;
        }

        var loss = Loss(Step);
        var value = loss.to(float64).item<double>();
        if (!double.IsFinite(value))
        {
            throw new InvalidOperationException($"The loss of step {Step + 1:N0} is not a finite number: train with a smaller learning rate than {_plan.LearningRate}.");
        }

        _optimizer.zero_grad();
        loss.backward();
        var norm = nn.utils.clip_grad_norm_(_parameters, _plan.ClipNorm);
        _optimizer.step();
        return new TrainingPoint(Step + 1, value, rate, norm);
    }

    private void Validate()
    {
        using var scope = NewDisposeScope();
        using var gradient = no_grad();
        _model.eval();
        History.Validations.Add(new ValidationPoint(Step, Validation!()) { Observed = Observe?.Invoke() });
        _model.train();
    }
}
